"""Which teacher checkpoint supervises which student epoch."""

from itertools import pairwise

from pydantic import model_validator

from raykd.record import Record


class Route(Record):
    """Teacher epochs in order, and the student epoch at which each takes over.

    Plain distillation is the route with one anchor, the trained teacher. More anchors are
    route constrained optimisation (Jin et al. 2019, arXiv 1904.09149).
    """

    anchors: tuple[int, ...]  # teacher epochs; 0 for a pretrained teacher
    starts: tuple[int, ...] = (0,)  # student epochs

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
