"""Sums of methods, such as "X + KD"."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Stages
from raykd.methods.crd import CRD
from raykd.methods.feature_maps import sum_by_spot
from raykd.methods.kd import KD
from raykd.methods.wrapper import Wrapper, changes_scores

if TYPE_CHECKING:
    AnyPart = Method  # the union of all other methods, set in `raykd.methods`


class Combine(Wrapper):
    """Sum of the losses of several methods; `combine: [crd, kd]` in an experiment file.

    The CRD benchmark (Tian et al. 2020, arXiv 1910.10699, table 5) reports "X + KD" with weight 1
    for the labels, weight 1 for KD and the default weight of X. In a file, a part `kd` without a
    weight therefore gets `weight: 1.0`. The default is the benchmark's strongest, CRD + KD.
    """

    title: ClassVar[str] = "the sum of other methods, as the CRD benchmark's X + KD"
    cost: ClassVar[str] = "its parts'"

    name: Literal["combine"] = "combine"
    combine: "tuple[AnyPart, ...]" = (CRD(), KD(weight=1.0))
    """Methods whose losses are added, by name or with settings; none is itself a sum."""

    @model_validator(mode="after")
    def _check(self) -> "Combine":
        for problem, count in (
            ("trains something else before", sum(p.prelude() is not None for p in self.combine)),
            ("mixes the samples", len({p.mixing() for p in self.combine if p.mixing()})),
            ("changes the scores", sum(map(changes_scores, self.combine))),
        ):
            if count > 1:
                raise ValueError(
                    f"combine: {count} of the methods are such that {problem}; keep one"
                )
        maps = [part.needs() for part in self.combine if Signal.MAP in part.needs()]
        if len({Signal.BLOCKS in needs for needs in maps}) > 1:
            raise ValueError(
                "combine: some methods read the teacher's last block and others its last two; give "
                "all the same blocks"
            )
        if len(self.combine) < 2:
            raise ValueError("combine: a sum has two methods or more")
        for part in self.combine:
            if part.trains != "student" or part.name == "label_only":
                raise ValueError(f"combine: {part.name!r} cannot be part of a sum")
        if any(part.teacherless for part in self.combine) and not self.needs():
            raise ValueError("combine: none of the methods reads a teacher; name one that does")
        return self

    @property
    def label(self) -> str:
        """Labels of the parts, as in "crd + kd"."""
        return " + ".join(part.label for part in self.combine)

    def parts(self) -> Mapping[str, Method]:
        """Methods by their number from 0."""
        return {str(number): part for number, part in enumerate(self.combine)}

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """Spots of all parts, in depth order."""
        spots = {s: t for part in self.combine for s, t in part.spots(student, teacher).items()}
        order = [*student, "embedding", "logits"]
        return {spot: spots[spot] for spot in sorted(spots, key=order.index)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Helpers of each part under its number."""
        return nn.ModuleDict(
            {
                number: part.helpers(student, teacher, targets)
                for number, part in self.parts().items()
            }
        )

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Sum of the parts' losses at each spot."""
        return sum_by_spot(
            part.losses(student, teacher, batch, part_helpers)
            for part, part_helpers in self.with_helpers(helpers)
        )
