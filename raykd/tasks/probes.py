"""Probes: how well the labels of test images follow from embeddings, which stay as they are.

All functions are pure: they change no network, and the same arguments on the same device give the
same numbers. They work where `train` is, in blocks, so that the memory beside the embeddings is
bounded; L-BFGS alone holds a float32 copy of them.

Shapes: N training rows, M test rows, D width of an embedding, C classes, K neighbours, G settings
that are tried.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core import keyed_random
from raykd.data.loading.sampler import epoch_order, stratified

NEIGHBOURS = 20  # k of the k-NN probe
TEMPERATURE = 0.07
MOST_LBFGS = 1 << 16  # training rows; more of them are trained on by SGD
RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # weights of half the squared norm
ITERATIONS = 100  # L-BFGS steps for each ridge, over all rows
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # SGD's rates, if a row's squared norm is D
EPOCHS, BATCH, MOMENTUM = 10, 1024, 0.9
_TEST_ROWS, _TRAIN_ROWS = 1 << 10, 1 << 14  # rows of a block: 64 MB of similarities


class Accuracy(NamedTuple):
    """Percentages of test rows."""

    top1: float  # share of images whose class is the first
    top5: float  # share of images whose class is among the first five


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Accuracy:
    """Accuracy of the weighted vote of the `k` nearest training rows, or of all if those are fewer.

    `train` is [N, D], `test` [M, D], of any floating type, labels int64 [N] and [M]. The vote of a
    neighbour counts exp(cosine / temperature), as in the evaluation of DINO (Caron et al. 2021,
    arXiv 2104.14294, appendix; after Wu et al. 2018, arXiv 1805.01978, section 3.4), where 20
    neighbours and 0.07 are the usual choice. Between equal cosines the earlier training row is
    nearer, between equal votes the lower class is first. A class without a vote is no answer, also
    where fewer than five have one. Raises `ValueError` for embeddings that do not fit or are not
    finite.
    """
    _check(train, train_labels, test, test_labels, classes)
    train_labels = train_labels.to(train.device)
    right = torch.zeros(2, dtype=torch.int64, device=train.device)
    for rows, labels in zip(test.split(_TEST_ROWS), test_labels.split(_TEST_ROWS), strict=True):
        cosines, neighbours = _nearest(_unit(rows.to(train.device)), train, k)
        votes = _votes(cosines, train_labels[neighbours], classes, temperature)
        right += _hits(votes, labels.to(train.device), votes > 0)
    return _accuracy(right, len(test))


def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    solver: Literal["lbfgs", "sgd"] | None = None,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of a multinomial logistic regression on embeddings that stay as they are.

    `train` is [N, D], `test` [M, D], of any floating type, labels int64 [N] and [M]. Each of the D
    numbers is brought to mean 0 and deviation 1 over `train`, which is what the batch norm without
    affine parameters of MAE's probe does (He et al. 2021, arXiv 2111.06377, appendix A.1).

    The budget: up to `MOST_LBFGS` rows (or as `solver` says), L-BFGS with at most `ITERATIONS` for
    each of `RIDGES`, from the largest on; of more rows, SGD with `MOMENTUM` and a cosine for
    `EPOCHS` in batches of `BATCH`, with each of `RATES` at once. What is best on a tenth of the
    training rows, which `seed` draws class by class, is used on all of them. Raises `ValueError`
    for embeddings that do not fit or are not finite.
    """
    _check(train, train_labels, test, test_labels, classes)
    rows = _Standardised.of(train, train_labels)
    held, rest = rows.divided(seed)
    if (solver or ("lbfgs" if len(train) <= MOST_LBFGS else "sgd")) == "lbfgs":
        start = train.new_zeros(train.shape[1] + 1, classes, dtype=torch.float32)
        heads = [start]
        for ridge in RIDGES:
            heads.append(_by_lbfgs(rest, heads[-1], ridge))
        best = _best(held, heads[1:])
        head = _by_lbfgs(rows, heads[1 + best], RIDGES[best])
    else:
        best = _best(held, _by_sgd(rest, classes, RATES, seed))
        head = _by_sgd(rows, classes, RATES[best : best + 1], seed)[0]
    right, _ = _judged(rows._replace(rows=test, labels=test_labels.to(train.device)), head)
    return _accuracy(right, len(test))


def _check(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int
) -> None:
    """Raise `ValueError` for embeddings and labels that do not fit each other."""
    width = train.shape[-1]
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if rows.dim() != 2 or not len(rows) or rows.shape[1] != width:
            raise ValueError(f"{name}: expected rows of {width} numbers, got {list(rows.shape)}")
        if labels.shape != rows.shape[:1]:
            raise ValueError(f"{name}: {len(rows)} rows, but labels {list(labels.shape)}")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name}: expected labels of {classes} classes, numbered from 0")
        if not all(bool(block.isfinite().all()) for block in rows.split(_TRAIN_ROWS)):
            raise ValueError(f"{name}: some embeddings are not finite")


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, float32; one of zeros stays so."""
    return F.normalize(rows.to(torch.float32), dim=1)


def _nearest(test: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines float32 [M, K], falling, and rows int64 [M, K] of the training rows nearest `test`.

    `test` has rows of length 1; between equal cosines, rows rise.
    """
    cosines = test.new_empty(len(test), 0)
    rows = torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for start, block in _blocks(train):
        values, places = _highest(test @ _unit(block).T, k)
        cosines, rows = torch.cat([cosines, values], 1), torch.cat([rows, places + start], 1)
        cosines, order = cosines.sort(dim=1, descending=True, stable=True)
        cosines, rows = cosines[:, :k], rows.gather(1, order)[:, :k]
    return cosines, rows


def _blocks(train: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of the first row of each block of training rows, and the block."""
    for start in range(0, len(train), _TRAIN_ROWS):
        yield start, train[start : start + _TRAIN_ROWS]


def _highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` highest of each row of [M, n], and their places; the lowest places of equal ones."""
    highest, places = values.topk(min(k, values.shape[1]), dim=1)
    # Which of equal values topk takes is not defined; so is their order.
    tied = ((values >= highest[:, -1:]).sum(1) > highest.shape[1]).nonzero().squeeze(1)
    if len(tied):
        order = values[tied].sort(dim=1, descending=True, stable=True).indices
        places[tied] = order[:, : highest.shape[1]]
    places = places.sort(dim=1).values
    highest, order = values.gather(1, places).sort(dim=1, descending=True, stable=True)
    return highest, places.gather(1, order)


def _votes(cosines: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Votes float64 [M, C] of neighbours with cosines [M, K] and labels int64 [M, K]."""
    # The nearest counts 1: a factor that is common to a row changes no order, and cannot overflow.
    weights = ((cosines.double() - cosines[:, :1].double()) / temperature).exp()
    votes = weights.new_zeros(len(cosines), classes)
    for label, weight in zip(labels.split(1, 1), weights.split(1, 1), strict=True):
        votes.scatter_add_(1, label, weight)  # one entry of each row: the order of sums is fixed
    return votes


def _hits(scores: Tensor, labels: Tensor, answers: Tensor | None = None) -> Tensor:
    """Number of rows whose class has the highest score, and one of the five highest: int64 [2].

    `scores` are [M, C], of which only `answers` (bool [M, C]) count; between equal scores the lower
    class is first.
    """
    score = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > score) | ((scores == score) & lower)).sum(1)
    if answers is not None:
        rank = rank.masked_fill(~answers.gather(1, labels[:, None]).squeeze(1), scores.shape[1] + 5)
    return torch.stack([(rank < 1).sum(), (rank < 5).sum()])


def _accuracy(right: Tensor, count: int) -> Accuracy:
    top1, top5 = (100 * hits / count for hits in right.tolist())
    return Accuracy(top1, top5)


class _Standardised(NamedTuple):
    """Rows that are brought to mean 0 and deviation 1, a block at a time."""

    rows: Tensor  # [n, D]
    labels: Tensor  # int64 [n]
    mean: Tensor  # float32 [D]
    deviation: Tensor  # float32 [D]; 1 where all rows are equal

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor) -> "_Standardised":
        """Rows by their own mean and deviation."""
        total = rows.new_zeros(rows.shape[1], dtype=torch.float64)
        for _, block in _blocks(rows):
            total += block.double().sum(0)
        mean, squares = total / len(rows), torch.zeros_like(total)
        for _, block in _blocks(rows):
            squares += (block.double() - mean).square().sum(0)
        deviation = (squares / len(rows)).sqrt()
        # Rounding leaves a little of a number that is the same in all rows.
        flat = deviation <= 1e-6 * mean.abs()
        deviation = deviation.masked_fill(flat, 1)
        return cls(rows, labels.to(rows.device), mean.float(), deviation.float())

    def divided(self, seed: int) -> tuple["_Standardised", "_Standardised"]:
        """A tenth of the rows, and the others; all of them twice where they are fewer than ten."""
        labels = self.labels.cpu()
        held = stratified(labels, len(labels) // 10, seed, keyed_random.PROBE)
        if not len(held):
            return self, self
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[held] = False
        return self.take(held), self.take(rest.nonzero().squeeze(1))

    def take(self, ids: Tensor) -> "_Standardised":
        """The rows `ids` (int64 [n])."""
        ids = ids.to(self.rows.device)
        return self._replace(rows=self.rows[ids], labels=self.labels[ids])

    def block(self, rows: Tensor) -> Tensor:
        """Some of the rows, standardised, with a column of ones: float32 [n, D + 1]."""
        scaled = (rows.to(self.mean.device, torch.float32) - self.mean) / self.deviation
        return F.pad(scaled, (0, 1), value=1.0)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of the rows, some at a time, and their labels."""
        for start, rows in _blocks(self.rows):
            yield self.block(rows), self.labels[start : start + len(rows)]


def _by_lbfgs(rows: _Standardised, start: Tensor, ridge: float) -> Tensor:
    """A head float32 [D + 1, C]: the least mean cross entropy and penalty, from `start` on.

    The penalty is ridge / 2 times the squared norm of all but the biases, the last row.
    """
    head, blocks = start.clone(), [*rows.blocks()]

    def objective() -> float:
        loss, slope = 0.0, torch.zeros_like(head)
        for block, labels in blocks:
            scores = (block @ head).log_softmax(1)
            loss -= float(scores.gather(1, labels[:, None]).double().sum())
            slope.addmm_(block.T, _residual(scores.exp_(), labels))
        head.grad = slope / len(rows.rows)
        head.grad[:-1] += ridge * head[:-1]
        return loss / len(rows.rows) + ridge / 2 * float(head[:-1].double().square().sum())

    optimiser = torch.optim.LBFGS(
        [head],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(objective)
    return head.detach()


def _by_sgd(rows: _Standardised, classes: int, rates: Sequence[float], seed: int) -> Tensor:
    """Heads float32 [G, D + 1, C], one for each rate at its highest."""
    device, count = rows.rows.device, len(rows.rows)
    rate = torch.tensor(rates, device=device).view(-1, 1, 1)
    heads = rate.new_zeros(len(rates), rows.rows.shape[1] + 1, classes)
    speed = torch.zeros_like(heads)
    batch = min(BATCH, count)
    steps = EPOCHS * (count // batch)
    for step in range(steps):
        epoch, place = divmod(step, count // batch)
        if not place:
            order = epoch_order(seed, epoch, count).to(device)
        ids = order[place * batch : (place + 1) * batch]
        block = rows.block(rows.rows[ids])
        residual = _residual((block @ heads).softmax(-1), rows.labels[ids])
        speed.mul_(MOMENTUM).add_(block.T @ residual, alpha=1 / batch)
        heads -= rate * (0.5 + 0.5 * math.cos(math.pi * step / steps)) * speed
    return heads


def _residual(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities [..., n, C] less 1 at the labels int64 [n], in place."""
    places = labels.view(-1, 1).expand(*probabilities.shape[:-1], 1)
    return probabilities.scatter_add_(
        -1, places, probabilities.new_full((1,), -1.0).expand_as(places)
    )


def _best(held: _Standardised, heads: Sequence[Tensor] | Tensor) -> int:
    """The number of the head [D + 1, C] with the most hits, between equal ones the least loss."""
    marks = []
    for head in heads:
        right, loss = _judged(held, head)
        # One that diverged is the last choice.
        marks.append((int(right[0]), -loss) if math.isfinite(loss) else (-1, 0.0))
    return marks.index(max(marks))


def _judged(rows: _Standardised, head: Tensor) -> tuple[Tensor, float]:
    """Hits int64 [2], as `_hits` has them, and the sum of cross entropies of a head [D + 1, C]."""
    right, loss = torch.zeros(2, dtype=torch.int64, device=head.device), 0.0
    for block, labels in rows.blocks():
        scores = (block @ head).log_softmax(1)
        right += _hits(scores, labels)
        loss -= float(scores.gather(1, labels[:, None]).double().sum())
    return right, loss
