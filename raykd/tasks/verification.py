"""Protocols for faces: do two images show one person, and who is it among many.

Similarities are cosines. All functions are pure; those that meet many pairs or images read them
block by block and keep a bounded part.

Shapes: P pairs, M images of known people, N distractors, D width of an embedding.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core import keyed_random
from raykd.tasks.rankings import check_rows

FOLDS = 10
_CELLS = 1 << 22  # similarities of a block
_ORDERS = 3  # of distractors, whose first ones count
_BLOCK = 4096  # distractors at a time


class Folds(NamedTuple):
    """Accuracy of verification over folds, as fractions of 1."""

    mean: float
    deviation: float  # between folds, over their number
    accuracies: tuple[float, ...]  # one for each fold


class Pairs(NamedTuple):
    """Pairs of images, each in a fold."""

    first: Tensor  # int64 [P]: row of an image
    second: Tensor  # int64 [P]
    same: Tensor  # bool [P]: both are of one person
    fold: Tensor  # int64 [P]: from 0


def fold_accuracy(scores: Tensor, same: Tensor, fold: Tensor) -> Folds:
    """Accuracy of "the score is above t", with t from the other folds, as the LFW protocol has it.

    `scores` [P], `same` bool [P], `fold` int64 [P]. t is minus infinity or one of the other folds'
    scores, the lowest of those that are right most often (Huang et al. 2007, LFW, "image-restricted
    configuration"; the thresholds are ours: the usual grid of squared distances, 0 to 4 in steps of
    0.01, differs by a pair of a fold at most). Raises `ValueError` where there are not two folds.
    """
    numbers = fold.unique().tolist()
    if len(numbers) < 2:
        raise ValueError(f"expected pairs in 2 or more folds, got {len(numbers)}")
    accuracies: list[float] = []
    for number in numbers:
        held = fold == number
        limit = _threshold(scores[~held], same[~held])
        accuracies.append(float(((scores[held] > limit) == same[held]).double().mean()))
    values = torch.tensor(accuracies, dtype=torch.float64)
    return Folds(float(values.mean()), float(values.std(correction=0)), tuple(accuracies))


def _threshold(scores: Tensor, same: Tensor) -> Tensor:
    """The lowest of the thresholds above which most scores are of the same person."""
    order = scores.argsort()
    scores, same = scores[order], same[order].long()
    # A threshold at a score accepts those above it: after the last of equal ones.
    rejected_right = F.pad((1 - same).cumsum(0), (1, 0))
    rejected_wrong = F.pad(same.cumsum(0), (1, 0))
    right = rejected_right + same.sum() - rejected_wrong
    last = F.pad(scores[1:] != scores[:-1], (1, 1), value=True)
    limits = torch.cat([scores.new_full((1,), -torch.inf), scores])
    return limits[right.masked_fill(~last, -1).argmax()]


class Highest:
    """The highest of many scores, as far as thresholds need them, and how many were seen."""

    def __init__(self, keep: int) -> None:
        """Keep the `keep` highest."""
        self.keep, self.count = keep, 0
        self._kept = torch.zeros(0)

    def add(self, scores: Tensor) -> None:
        """Take more scores [n]."""
        self.count += len(scores)
        both = torch.cat([self._kept.to(scores), scores])
        self._kept = both.topk(min(self.keep, len(both))).values

    def at(self, place: int) -> Tensor:
        """The score at a place from 1, the highest first."""
        return self._kept[place - 1]


def tar_at_far(
    genuine: Tensor, impostors: Iterable[Tensor], count: int, rates: Sequence[float]
) -> dict[float, float | None]:
    """Share of genuine pairs that is accepted where at most a rate of impostor pairs is.

    `genuine` are scores of pairs of one person [P], `impostors` the `count` scores of pairs of two,
    some at a time. The threshold at a rate is the (floor(rate * count) + 1)-th highest impostor
    score, and a pair is accepted above it. None where rate * count is less than 1: so few pairs do
    not tell. The memory is for the highest rate's pairs.
    """
    places = {rate: math.floor(rate * count + 1e-9) + 1 for rate in rates}
    highest = Highest(max(places.values(), default=0))
    for scores in impostors:
        highest.add(scores)
    if highest.count != count:
        raise ValueError(f"expected {count} impostor scores, got {highest.count}")
    return {
        rate: None
        if place < 2
        else float((genuine > highest.at(place).to(genuine)).double().mean())
        for rate, place in places.items()
    }


def genuine_scores(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Cosines of all pairs i < j of embeddings [M, D] with one label (int64 [M]): [P]."""
    unit, parts = _unit(embeddings), list[Tensor]()
    for label in labels.unique().tolist():
        rows = unit[labels == label]
        first, second = torch.triu_indices(len(rows), len(rows), 1)
        parts.append((rows @ rows.T)[first, second])
    return torch.cat(parts)


def impostor_scores(embeddings: Tensor, labels: Tensor) -> Iterable[Tensor]:
    """Cosines of all pairs i < j of embeddings [M, D] with two labels, some at a time."""
    unit, count = _unit(embeddings), len(embeddings)
    size = max(1, _CELLS // count)
    columns = torch.arange(count, device=unit.device)
    for start in range(0, count, size):
        rows = columns[start : start + size, None]
        other = (labels[start : start + size, None] != labels) & (rows < columns)
        yield (unit[start : start + size] @ unit.T)[other]


def impostor_count(labels: Tensor) -> int:
    """Number of pairs of two labels (int64 [M])."""
    sizes = torch.bincount(labels)
    return (len(labels) ** 2 - int((sizes**2).sum())) // 2


def rank_1(
    probes: Tensor, labels: Tensor, distractors: Iterable[Tensor], counts: Sequence[int]
) -> dict[int, float]:
    """Share of pairs of one person that find each other among the first n distractors, n -> share.

    For each ordered pair (a, b) of `probes` [M, D] with one label (int64 [M]), b is hidden among
    distractors [n, D]: a hit where cos(a, b) is above the cosines of a with all of them (MegaFace,
    Kemelmacher-Shlizerman et al. 2016, arXiv 1512.00596, challenge 1; a tie is no hit). The
    distractors come some at a time, in one order, of which each count takes the first ones; the
    memory is for one block. Raises `ValueError` where there are fewer than the largest count, for
    counts below 1, where no two probes are of one person, and for embeddings that do not fit or are
    not finite.
    """
    check_rows("probes", probes, probes.shape[-1], labels)
    if min(counts, default=1) < 1:
        raise ValueError(f"expected counts of 1 distractor or more, got {min(counts)}")
    unit = _unit(probes)
    labels = labels.to(unit.device)
    pair = labels[:, None] == labels
    pair.fill_diagonal_(False)
    first, second = pair.nonzero().unbind(1)
    if not len(first):
        raise ValueError("expected two or more images of one person, got one of each")
    scores = (unit[first] * unit[second]).sum(1)
    wanted, seen = sorted({*counts}), 0
    nearest = unit.new_full((len(unit),), -torch.inf)
    shares: dict[int, float] = {}
    for block in distractors:
        if len(block):
            check_rows("distractors", block, probes.shape[-1])
        while wanted and len(block):
            part, block = block[: wanted[0] - seen], block[wanted[0] - seen :]
            nearest = torch.maximum(nearest, _most_similar(unit, part.to(unit.device)))
            seen += len(part)
            if seen == wanted[0]:
                shares[wanted.pop(0)] = float((scores > nearest[first]).double().mean())
    if wanted:
        raise ValueError(f"expected {wanted[-1]} distractors, got {seen}")
    return shares


def rank_1_among(
    probes: Tensor, labels: Tensor, distractors: Tensor, counts: Sequence[int]
) -> dict[int, float]:
    """Mean of `rank_1` over three orders of the distractors [n, D], which follow from their rows.

    Three are ours; MegaFace has sets of its own.
    """
    rows, found = torch.arange(len(distractors)), list[dict[int, float]]()
    for seed in range(_ORDERS):
        order = keyed_random.draw(seed, rows, 0, keyed_random.PROBE).argsort(stable=True)
        blocks = (distractors[part.to(distractors.device)] for part in order.split(_BLOCK))
        found.append(rank_1(probes, labels, blocks, counts))
    return {count: sum(shares[count] for shares in found) / len(found) for count in sorted(counts)}


def numbers_of_distractors(count: int) -> tuple[int, ...]:
    """The powers of 10 from 10 to a million below a number of distractors, and that number."""
    return (*(10**power for power in range(1, 7) if 10**power < count), count)


def _most_similar(unit: Tensor, others: Tensor) -> Tensor:
    """The highest cosine of each of unit rows [M, D] with rows [n, D]: [M]."""
    size = max(1, _CELLS // len(unit))
    parts = (unit @ _unit(part).T for part in others.split(size))
    highest = unit.new_full((len(unit),), -torch.inf)
    for part in parts:
        highest = torch.maximum(highest, part.amax(1))
    return highest


def draw_pairs(labels: Tensor, folds: int, each: int) -> Pairs:
    """Pairs in folds of different people, as LFW has them: as many of one person as of two.

    The people (`labels`, int64 [M]) are dealt out to the folds in a random order, always the
    same. Of the pairs of a fold's images, `each` of one person are drawn and `each` of two, or as
    many as there are of the rarer kind. Raises `ValueError` where a fold has none of a kind.
    """
    labels = labels.cpu()
    people, counts = labels.unique(return_counts=True)
    if not len(counts) or int(counts.max()) < 2:
        raise ValueError(
            f"expected pairs of one person, got one image of each of {len(people)} people; give "
            "two or more of some"
        )
    draws = keyed_random.draw(0, people, 0, keyed_random.PROBE)
    people = people[draws.argsort(stable=True)]
    parts: list[Pairs] = []
    for number in range(folds):
        rows = torch.isin(labels, people[number::folds]).nonzero().squeeze(1)
        first, second = rows[torch.triu_indices(len(rows), len(rows), 1)]
        order = keyed_random.draw(0, first * len(labels) + second, 1, keyed_random.PROBE)
        order = order.argsort(stable=True)
        first, second = first[order], second[order]
        same = labels[first] == labels[second]
        size = min(each, int(same.sum()), int((~same).sum()))
        if not size:
            raise ValueError(
                f"fold {number + 1} of {folds}: expected pairs of one person and of two, among "
                f"{len(people[number::folds])} of {len(people)} people, with {len(rows)} images; "
                "use fewer folds"
            )
        for kind in (True, False):
            chosen = (same == kind).nonzero().squeeze(1)[:size]
            values = (first[chosen], second[chosen], same[chosen], torch.full((size,), number))
            parts.append(Pairs(*values))
    return Pairs(*(torch.cat(values) for values in zip(*parts, strict=True)))


def listed_pairs(first: Tensor, second: Tensor, folds: int) -> Pairs:
    """The pairs of a list, from the labels of their first and of their second images (int64 [P]).

    Rows of second images come after all first ones, and folds are equal parts of the list in its
    order. Raises `ValueError` where a list is too short, or has pairs of one kind alone.
    """
    count, same = len(first), (first == second).cpu()
    if count < folds:
        raise ValueError(f"expected {folds} pairs or more, one in each fold, got {count}")
    if not 0 < int(same.sum()) < count:
        raise ValueError(f"expected pairs of one person and of two, got {count} of one kind")
    rows = torch.arange(count)
    return Pairs(rows, rows + count, same, rows * folds // count)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)
