"""The policy of spot-adaptive distillation, and the network of two networks that it learns from.

Song et al. 2022, arXiv 2205.02399, as its official code has it. Shapes: B batch, C classes, D
embedding width, R decisions: those between the spots, and the last one, for the logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Network, Outputs, Shapes
from raykd.methods.base import full_precision, precise
from raykd.methods.feature_maps import Regressor, check_sequential
from raykd.methods.helper_kinds import Paced, Shared, Tally

SURE = 10.0  # added to the biases for the teacher where both networks are of one family


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers in [0, 1), with the official code's epsilons."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


def choose(scores: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """1 where the teacher is chosen, otherwise 0, with the gradient of a soft choice: [B, R].

    `scores` and `noise` are [B, R, 2], for the teacher and for the student. P(1) is the softmax of
    the scores, and the temperature shapes the gradient only (straight-through Gumbel softmax,
    Jang et al. 2017, arXiv 1611.01144). The values are 0 and 1 exactly.
    """
    noisy = scores + noise
    soft = torch.softmax(noisy / temperature, dim=2)[:, :, 0]
    hard = (noisy[:, :, 0] >= noisy[:, :, 1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def route_loss(
    routed: Tensor,
    student: Tensor,
    targets: Tensor,
    gates: Tensor,
    gamma: float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """The routing network's cross entropy in nats, switched by gamma, and the logits' hinge.

    Times `gamma` where it is above the cross entropy of the student's own logits, over it where it
    is below. The hinge max(0, B / 2 - sum of gates) asks for the teacher's logits in half of the
    batch; as in the official code, it is not divided by B. `routed` and `student` are logits
    [B, C], `gates` those of the logits' spot [B]. With `gather` the batch is that of all workers,
    over whom the gradients are averaged.
    """
    size, taught = len(gates), gates.sum()
    route = F.cross_entropy(routed, targets)
    plain = F.cross_entropy(student, targets)
    here = torch.stack([size * route, size * plain, taught, taught.new_full((), size)]).detach()
    workers = gather(here[None])
    above, below, all_taught, all_samples = workers.sum(0)
    factor = gamma ** torch.sign(above - below)
    active = all_taught < all_samples / 2
    # A mean over workers, who count by their samples, of what is to be a sum over all.
    return factor * route + all_samples / size * active * (size / 2 - taught)


def segments(network: Network, spots: Sequence[str]) -> list[list[nn.Module]]:
    """The modules up to the first spot, then to the next (in depth order), then to the logits."""
    parts = {**network.stages, "embedding": network.pool, "logits": network.classifier}
    names, modules = [*parts], [*parts.values()]
    ends = [names.index(spot) + 1 for spot in (*spots, "logits")]
    return [modules[start:stop] for start, stop in pairwise((0, *ends))]


class Router(Paced, Shared):
    """The policy, and the adapters between the two networks: what only the routing loss trains.

    `spots` are those that are routed through, without the logits, and what of the teacher each is
    compared with; `columns` says which decision each follows.
    """

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        spots: Mapping[str, str],
        columns: Mapping[str, int],
        *,
        sure: bool,
        relu: bool,
        again: bool,
    ) -> None:
        """`sure`: the policy begins with the teacher everywhere; `relu`: adapters end in one.

        `again`: the teacher is trained, and what it said is not what it says in evaluation mode.
        Raises `ConfigError` where the teacher comes to its spots in another order, or where a
        network cannot be run from stage to stage.
        """
        if any(spot != "embedding" for spot in spots):
            for shapes in (student, teacher):
                check_sequential(shapes, "sakd", "runs networks from stage to stage")
        depths = [[*teacher.features, "embedding"].index(spot) for spot in spots.values()]
        if depths != sorted(set(depths)):
            raise ConfigError(
                "method 'sakd' goes from spot to spot, and its base compares the student's "
                f"{', '.join(spots)} with the teacher's {', '.join(spots.values())}, which do not "
                "follow each other. Choose networks with as many stages, or another base."
            )
        super().__init__()
        self.again = again
        self.spots, self.columns = dict(spots), dict(columns)
        decisions = max(columns.values()) + 1
        self.policy = nn.Linear(teacher.embedding + student.embedding, 2 * decisions)
        if sure:
            with torch.no_grad():
                self.policy.bias[::2] += SURE
        self.to_teacher, self.to_student = nn.ModuleDict(), nn.ModuleDict()
        for spot, other in spots.items():
            self.to_teacher[spot] = _adapter(student, teacher, spot, other, relu)
            self.to_student[spot] = _adapter(teacher, student, other, spot, relu)

    def gates(self, student: Tensor, teacher: Tensor, uniform: Tensor, heat: float) -> Tensor:
        """The decisions [B, R] for embeddings [B, D], to which no gradient goes.

        `uniform` [B, 2 R] are random numbers in [0, 1), `heat` is the Gumbel temperature.
        """
        with full_precision(uniform):
            both = torch.cat([precise(teacher.detach()), precise(student.detach())], dim=1)
            scores = self.policy(both).unflatten(1, (-1, 2))
            return choose(scores, gumbel(uniform).view_as(scores), heat)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, gates: Tensor, gamma: float
    ) -> Tensor:
        """The loss of policy and adapters; `batch` has the pixels that the student saw.

        The network runs in the precision in which the student ran.
        """
        pixels, lower = batch.pixels, student.logits.dtype == torch.bfloat16
        with torch.autocast(pixels.device.type, torch.bfloat16, lower):
            routed = self(student.network, pixels, teacher, gates)
        with full_precision(routed):
            plain, gate = precise(student.logits.detach()), gates[:, -1]
            return route_loss(precise(routed), plain, batch.targets, gate, gamma, self.gather)

    def forward(self, student: Network, pixels: Tensor, teacher: Outputs, gates: Tensor) -> Tensor:
        """The logits [B, C] of both networks, joined sample by sample as the gates say.

        `pixels` are the student's, `teacher` is what the teacher said of the same samples. Both
        networks run in evaluation mode, the adapters in their own; the networks' weights get no
        gradients. Up to the first spot, the teacher is not run again and the student without them.
        """
        with _settled(student, *([teacher.network] if self.again else [])):
            first, *ours = segments(student, [*self.spots])
            mine = _constant(first, pixels)
            theirs, others = self._teacher(teacher)
            for spot, own, other in zip(self.spots, ours, others, strict=True):
                gate = gates[:, self.columns[spot]].view(-1, *[1] * (mine.dim() - 1))
                given = gate * theirs + (1 - gate) * self.to_teacher[spot](mine)
                taken = gate * self.to_student[spot](theirs) + (1 - gate) * mine
                mine, theirs = _frozen(own, taken), _frozen(other, given)
            gate = gates[:, -1:]
            return gate * theirs + (1 - gate) * mine

    def _teacher(self, teacher: Outputs) -> tuple[Tensor, list[list[nn.Module]]]:
        """The teacher's features at the first spot, and its modules from each spot to the next."""
        spots = [*self.spots.values()]
        if self.again:
            first, *others = segments(teacher.network, spots)
            return precise(_constant(first, teacher.pixels)), others
        if not spots:
            return precise(teacher.logits.detach()), []
        if spots == ["embedding"]:  # the trunk is not needed, and a cache has none
            return precise(teacher.embedding.detach()), [[teacher.classifier]]
        _, *others = segments(teacher.network, spots)
        return precise(teacher.features[spots[0]].detach()), others


@contextmanager
def _settled(*networks: nn.Module) -> Iterator[None]:
    """A region in which networks are in evaluation mode."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)


def _adapter(source: Shapes, target: Shapes, spot: str, other: str, relu: bool) -> nn.Module:
    """The adapter from one network's features at a spot to the shape of the other's."""
    if spot == "embedding":
        return nn.Linear(source.embedding, target.embedding)
    return Regressor(source.features[spot], target.features[other], relu=relu)


def _constant(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The modules' output, without any gradient."""
    with torch.no_grad():
        for module in modules:
            x = module(x)
    return x


def _frozen(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The modules' output, whose gradient reaches `x` alone."""
    for module in modules:
        fixed = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        x = functional_call(module, fixed, (x,)) if fixed else module(x)
    return x


class Selection(Tally):
    """Numbers of chosen samples by decision and class: counts int64 [R + 1, C].

    The last row counts all samples.
    """

    def __init__(self, names: Sequence[str], classes: int) -> None:
        """`names` are those of the R decisions."""
        super().__init__(len(names) + 1, classes)
        self.names = tuple(names)
        self.seed = keyed_random.drawn_seed()

    def uniform(self, batch: Batch, count: int) -> Tensor:
        """Random numbers in [0, 1) for each sample: [B, count], by (seed, sample, epoch)."""
        each = batch.ids[:, None] * count + torch.arange(count, device=batch.ids.device)
        return keyed_random.uniform(self.seed, each, batch.epoch, keyed_random.GATE)

    def add(self, chosen: Tensor, labels: Tensor) -> None:
        """Count the samples of a batch: `chosen` is bool [B, R], `labels` int64 [B]."""
        rows = F.pad(chosen, (0, 1), value=True).T.long()
        self.counts.index_add_(1, labels, rows)

    def metrics(self, counts: Tensor) -> dict[str, Any]:
        """Shares in percent: `selected_<name>`, and `selected_by_class`, a list by name."""
        *chosen, seen = counts.tolist()
        shares: dict[str, Any] = {}
        by_class: dict[str, list[float | None]] = {}
        for name, row in zip(self.names, chosen, strict=True):
            pairs = [*zip(row, seen, strict=True)]
            shares[f"selected_{name}"] = 100 * sum(row) / max(1, sum(seen))
            by_class[name] = [round(100 * n / of, 1) if of else None for n, of in pairs]
        return shares | {"selected_by_class": by_class}
