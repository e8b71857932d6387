"""Order of samples: pure functions of (seed, epoch) and of the worker's rank.

Shapes: N dataset rows.
"""

import torch
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.errors import ConfigError


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """A permutation of the rows, int64 [N]; depends on nothing but its arguments."""
    return torch.argsort(
        keyed_random.draw(seed, torch.arange(size), epoch, keyed_random.ORDER), stable=True
    )


def by_class(order: Tensor, targets: Tensor, count: int) -> Tensor:
    """An order of the rows (int64 [N]) in which up to `count` of one class follow each other.

    The rows of a class (`targets`, int64 [N]) are grouped as they come in `order`, and each group
    stands where its first row does; 1 is `order` itself.
    """
    if count == 1:
        return order
    targets = targets.to(order.device)
    rows = order[targets[order].argsort(stable=True)]
    labels, places = targets[rows], torch.arange(len(rows))
    within = places - torch.searchsorted(labels, labels)  # row's number within its class
    came = torch.empty_like(order).index_copy_(0, order, places)
    return rows[came[rows[places - within % count]].argsort(stable=True)]


def steps(
    order: Tensor, batch: int, rank: int, world: int, parts: int = 1, *, uneven: bool = False
) -> Tensor:
    """Row ids [steps * parts, B] for one worker; a last partial batch is dropped.

    `batch` is the global size, B = batch // world // parts, and the parts of a worker's share of
    a batch follow each other. Step t covers the same samples for every `world`. Raises
    `ConfigError` where `world` does not divide the batch, unless shares may be `uneven`: then some
    have one sample more. Raises it where there is not one whole batch, too.
    """
    check = check_uneven if uneven else check_batch
    check(len(order), batch, world, parts)
    batches = order[: len(order) // batch * batch].view(-1, batch)
    first, end = batch * rank // world, batch * (rank + 1) // world
    return batches[:, first:end].reshape(-1, (end - first) // parts)


def check_batch(size: int, batch: int, world: int, parts: int = 1) -> None:
    """Raise `ConfigError` where `size` samples cannot be trained on in such batches."""
    if batch % world:
        raise ConfigError(
            f"a global batch of {batch} does not divide among {world} workers; "
            "choose optim.batch or scale.workers so that it does"
        )
    check_uneven(size, batch, world, parts)


def check_uneven(size: int, batch: int, world: int, parts: int = 1) -> None:
    """Raise `ConfigError` as `check_batch`, but allow shares that differ by one sample."""
    if batch < world:
        raise ConfigError(
            f"a global batch of {batch} has no sample for each of {world} workers; "
            "choose a larger optim.batch or a smaller scale.workers"
        )
    for samples in {batch // world, -(-batch // world)}:
        if samples % parts:
            raise ConfigError(
                f"a worker's {samples} samples of each batch do not divide into {parts} parts; "
                "choose optim.batch or scale.accumulate so that they do"
            )
    if size < batch:
        raise ConfigError(
            f"{size} training samples are fewer than one batch of {batch}; "
            "choose a smaller optim.batch"
        )


def share(size: int, rank: int, world: int) -> Tensor:
    """Rows of one worker, int64, such that every row is some worker's exactly once."""
    return torch.arange(size * rank // world, size * (rank + 1) // world)


def stratified(targets: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """`count` rows, in rising order, with each class's share in `targets` (int64 [N]) kept.

    Classes get what Webster's method gives parties of their size: the share of `count`, rounded,
    up to what many small classes shift. A smaller count chooses a subset of what a larger one does.
    """
    draws = keyed_random.draw(seed, torch.arange(len(targets)), 0, stream)
    position = torch.empty(len(targets), dtype=torch.float64)  # within the class, 0 to 1
    for label in targets.unique().tolist():
        rows = (targets == label).nonzero().squeeze(1)
        shuffled = rows[draws[rows].argsort(stable=True)]
        position[shuffled] = (torch.arange(len(rows)) + 0.5).double() / len(rows)
    return position.argsort(stable=True)[:count].sort().values
