"""Several methods at once: "X + KD" is a composition, not a method of its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.base import Method
from raykd.methods.crd import CRD
from raykd.methods.feature_maps import added
from raykd.methods.kd import KD
from raykd.methods.wrapper import Wrapper, changes_scores

if TYPE_CHECKING:
    AnyPart = Method  # the union of all other methods, which the table fills in


class Combine(Wrapper):
    """The losses of some methods, added up; `combine: [crd, kd]` in an experiment file.

    The CRD benchmark (Tian et al. 2020, arXiv 1910.10699, table 5) reports "X + KD" with the
    weights 1 for the labels, 1 for KD and X's own for X. In a file, a part that is `kd` alone
    therefore gets `weight: 1.0`; whatever is written beside a part's name is kept. Without a list
    it is the benchmark's strongest, CRD + KD.
    """

    title: ClassVar[str] = "the sum of other methods, as the CRD benchmark's X + KD"
    cost: ClassVar[str] = "its parts'"

    name: Literal["combine"] = "combine"
    combine: "tuple[AnyPart, ...]" = (CRD(), KD(weight=1.0))

    @model_validator(mode="after")
    def _check(self) -> "Combine":
        for what, count in (
            ("trains something else before", sum(p.prelude() is not None for p in self.combine)),
            ("mixes the samples", len({p.mixing() for p in self.combine if p.mixing()})),
            ("changes the scores", sum(map(changes_scores, self.combine))),
        ):
            if count > 1:
                raise ValueError(f"combine: {count} of the methods are such that {what}; keep one")
        if len(self.combine) < 2:
            raise ValueError("combine: a sum has two methods or more")
        for part in self.combine:
            if part.trains != "student" or part.name == "label_only":
                raise ValueError(f"combine: {part.name!r} cannot be part of a sum")
        return self

    @property
    def label(self) -> str:
        """Its parts, as in "crd + kd"."""
        return " + ".join(part.label for part in self.combine)

    def parts(self) -> Mapping[str, Method]:
        """The methods by their numbers from 0."""
        return {str(number): part for number, part in enumerate(self.combine)}

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The spots of all parts."""
        spots = {s: t for part in self.combine for s, t in part.spots(student, teacher).items()}
        order = [*student, "embedding", "logits"]
        return {spot: spots[spot] for spot in sorted(spots, key=order.index)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Each part's helpers under its number."""
        return nn.ModuleDict(
            {
                number: part.helpers(student, teacher, targets)
                for number, part in self.parts().items()
            }
        )

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The losses of all parts; those at the same spot are added up."""
        parts = self.with_helpers(helpers)
        return added(part.losses(student, teacher, batch, own) for part, own in parts)
