"""Routes: the teacher checkpoint of each student epoch, and the choice of checkpoints.

Route constrained optimisation (RCO): Jin et al. 2019, arXiv 1904.09149. The paper's text on the
choice was not at hand; what is not in its abstract is marked as decided here.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record

Epoch = Annotated[int, Field(ge=0, le=Limits.EPOCHS)]
NEAR = 1e-8  # a distance below this is none


class Route(Record):
    """Teacher epochs in order, and the student epoch at which each takes over.

    Plain distillation is the route with one anchor, the trained teacher. More anchors are
    route constrained optimisation (Jin et al. 2019, arXiv 1904.09149).
    """

    anchors: tuple[Epoch, ...]
    """Teacher epochs whose checkpoints teach, rising; 0 for a pretrained teacher."""
    starts: tuple[Epoch, ...] = (0,)
    """Student epoch (from 0) at which each anchor takes over, rising from 0."""

    @model_validator(mode="after")
    def _check(self) -> "Route":
        if len(self.anchors) != len(self.starts):
            raise ValueError(
                f"{len(self.anchors)} anchors need as many starts, got {len(self.starts)}"
            )
        for what, values in (("anchors", self.anchors), ("starts", self.starts)):
            if any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"the {what} must rise, got {list(values)}")
        if self.starts[:1] != (0,):
            raise ValueError(f"the first anchor starts at student epoch 0, got {list(self.starts)}")
        return self

    def at(self, epoch: int) -> int:
        """The anchor that supervises a student epoch (from 0)."""
        return [a for a, start in zip(self.anchors, self.starts, strict=True) if start <= epoch][-1]


def equal_by_interval(saved: Sequence[int], interval: int) -> tuple[int, ...]:
    """Anchors every `interval` epochs of the teacher, the last of them its last saved epoch.

    Equal epoch interval: the epochs interval, 2 interval, ... and the last, ceil(last / interval)
    of them. Raises `ValueError` where the teacher did not save one of them.
    """
    last = saved[-1]
    anchors = (*range(interval, last, interval), last)
    lacking = [anchor for anchor in anchors if anchor not in saved]
    if lacking:
        raise ValueError(
            f"an interval of {interval} wants the teacher's epoch {lacking[0]}, and saved are "
            f"{list(saved)}; choose a multiple of teacher.save_every"
        )
    return anchors


def equal_by_count(saved: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` anchors, as evenly as the teacher's saved epochs allow; the last is its last.

    The i-th is the saved epoch next to i / count of all epochs, the later one of two. Raises
    `ValueError` where fewer were saved.
    """
    if count > len(saved):
        raise ValueError(
            f"{count} anchors are asked for and the teacher saves {len(saved)}, {list(saved)}; "
            "lower teacher.save_every, or ask for fewer"
        )
    chosen: list[int] = []
    for number in range(1, count + 1):
        ideal = saved[-1] * number / count
        # What later anchors need is left to them.
        open_ = [a for a in saved[: len(saved) - count + number] if a > (chosen or [-1])[-1]]
        chosen.append(min(open_, key=lambda anchor: (abs(anchor - ideal), -anchor)))
    return tuple(chosen)


def hardness(current: float, other: float) -> float:
    """r = d(s, other) / d(s, current): how much harder another checkpoint is to match.

    Both are distances of one student. Where it has reached the current checkpoint (a distance
    below 1e-8) every other one is infinitely harder, unless it has reached that, too: then 1.
    """
    if current < NEAR:
        return 1.0 if other < NEAR else math.inf
    return other / current


def farthest(ratios: Mapping[int, float], current: int, threshold: float) -> int:
    """The next anchor of the greedy search: the last one with r at most `threshold`.

    `ratios` are the relative hardnesses of the saved epochs. Where no later one is within the
    threshold the next one is taken, so that the search always ends. Raises `ValueError` where
    there is none later.
    """
    later = sorted(anchor for anchor in ratios if anchor > current)
    if not later:
        raise ValueError(f"the teacher has no checkpoint after epoch {current}")
    within = [anchor for anchor in later if ratios[anchor] <= threshold]
    return within[-1] if within else later[0]
