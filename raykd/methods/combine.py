"""Several methods at once: "X + KD" is a composition, not a method of its own."""

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Coverage, Looks, Method, Prelude
from raykd.methods.crd import CRD
from raykd.methods.feature_maps import added
from raykd.methods.kd import KD

if TYPE_CHECKING:
    AnyPart = Method  # the union of all other methods, which the table fills in


class Combine(Method):
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
            ("changes the scores", len(self._scoring())),
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

    def needs(self) -> Signal:
        """What any part reads."""
        needs = Signal(0)
        for part in self.combine:
            needs |= part.needs()
        return needs

    def accepts(self, coverage: Coverage) -> bool:
        """What all parts accept."""
        return all(part.accepts(coverage) for part in self.combine)

    def looks(self) -> Looks:
        """What any part looks at."""
        every = [part.looks() for part in self.combine]
        student = dict.fromkeys(look for looks in every for look in looks.student)
        teacher = dict.fromkeys(look for looks in every for look in looks.teacher)
        return Looks(_given_first(student), _given_first(teacher))

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """As the part that mixes."""
        return next((part.mixing() for part in self.combine if part.mixing()), None)

    def prelude(self) -> Prelude | None:
        """That of the part that has one."""
        return next((part.prelude() for part in self.combine if part.prelude()), None)

    def remembers(self) -> bool:
        """True where any part does."""
        return any(part.remembers() for part in self.combine)

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """Those of any part."""
        found = {s: t for part in self.combine for s, t in part.spots(student, teacher).items()}
        order = [*student, "embedding", "logits"]
        return {spot: found[spot] for spot in sorted(found, key=order.index)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Each part's, under its number."""
        parts = [part.helpers(student, teacher, targets) for part in self.combine]
        return nn.ModuleDict({str(number): part for number, part in enumerate(parts)})

    def adopt(self, helpers: nn.ModuleDict, found: Mapping[str, Tensor]) -> None:
        """Hand the prelude's helpers to the part that asked for it."""
        for part, own in self.parts(helpers):
            if part.prelude() is not None:
                part.adopt(own, found)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """What any part needs to be used."""
        every = enumerate(self.parts(helpers))
        return nn.ModuleDict({str(i): out for i, (p, own) in every if len(out := p.releases(own))})

    def calibrates(self, helpers: nn.ModuleDict) -> bool:
        """Whether any part does."""
        return any(part.calibrates(own) for part, own in self.parts(helpers))

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Let every part that asks for it look at the teacher's outputs."""
        parts = [(part, own) for part, own in self.parts(helpers) if part.calibrates(own)]
        for (part, own), outputs in zip(parts, itertools.tee(teacher, len(parts)), strict=True):
            part.calibrate(own, outputs)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """Those of the part that changes them, or else the logits."""
        for number in self._scoring():
            return self.combine[number].scores(student, teacher, _part(helpers, number))
        return super().scores(student, teacher, helpers)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """As the part that changes the scores, or else the logits of both."""
        for number in self._scoring():
            return self.combine[number].comparable(student, teacher, _part(helpers, number))
        return super().comparable(student, teacher, helpers)

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """That of the part that changes the scores."""
        for number in self._scoring():
            return self.combine[number].rescaling(_part(helpers, number))
        return super().rescaling(helpers)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Each part's; what two have to say of the same spot is added up."""
        return added(p.losses(student, teacher, batch, own) for p, own in self.parts(helpers))

    def parts(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """Each method with its own helpers."""
        return [(part, _part(helpers, number)) for number, part in enumerate(self.combine)]

    def _scoring(self) -> list[int]:
        """Which parts change the scores."""
        parts: Iterable[Any] = map(type, self.combine)
        return [number for number, part in enumerate(parts) if part.scores is not Method.scores]


def _part(helpers: nn.ModuleDict, number: int) -> nn.ModuleDict:
    part = helpers[str(number)]
    assert isinstance(part, nn.ModuleDict)
    return part


def _given_first(looks: Iterable) -> tuple:
    """The given look is the main one, where it is among them."""
    return tuple(sorted(looks, key=lambda look: look != "given"))
