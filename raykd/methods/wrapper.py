"""Methods that are made of other methods."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from raykd.core.types import Look, Outputs, Signal
from raykd.methods.base import Coverage, Looks, Method, Prelude


class Wrapper(Method):
    """A method made of parts, each with helpers of its own: `combine`, `sakd`. Abstract.

    Answers for its parts; subclasses name them and compute the losses. At most one part has a
    prelude, mixes samples or changes the scores.
    """

    @abstractmethod
    def parts(self) -> Mapping[str, Method]:
        """The wrapped methods, by the name of their helpers."""

    def with_helpers(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """Each part with its own helpers."""
        return [(part, cast(nn.ModuleDict, helpers[name])) for name, part in self.parts().items()]

    def needs(self) -> Signal:
        """The signals that any part reads."""
        needs = Signal(0)
        for part in self.parts().values():
            needs |= part.needs()
        return needs

    def accepts(self, coverage: Coverage) -> bool:
        """True where all parts accept the coverage."""
        return all(part.accepts(coverage) for part in self.parts().values())

    def looks(self) -> Looks:
        """The looks of all parts; "given" is the main one where it is among them."""
        every = [part.looks() for part in self.parts().values()]
        return Looks(
            _given_first(look for looks in every for look in looks.student),
            _given_first(look for looks in every for look in looks.teacher),
        )

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """The mixing of the part that mixes."""
        return next(filter(None, (part.mixing() for part in self.parts().values())), None)

    def prelude(self) -> Prelude | None:
        """The prelude of the part that has one."""
        return next(filter(None, (part.prelude() for part in self.parts().values())), None)

    def has_memory(self) -> bool:
        """True where any part does."""
        return any(part.has_memory() for part in self.parts().values())

    def load_prelude(self, helpers: nn.ModuleDict, found: Mapping[str, Tensor]) -> None:
        """Hand the state of the prelude's helpers to the part that has the prelude."""
        for part, own in self.with_helpers(helpers):
            if part.prelude() is not None:
                part.load_prelude(own, found)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """The helpers that any part releases, by part."""
        every = zip(self.parts(), self.with_helpers(helpers), strict=True)
        released = {name: part.releases(own) for name, (part, own) in every}
        return nn.ModuleDict({name: kept for name, kept in released.items() if len(kept)})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True where any part still has to be calibrated."""
        return any(part.needs_calibration(own) for part, own in self.with_helpers(helpers))

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Calibrate the parts that still have to be."""
        every = self.with_helpers(helpers)
        parts = [(part, own) for part, own in every if part.needs_calibration(own)]
        for (part, own), outputs in zip(parts, itertools.tee(teacher, len(parts)), strict=True):
            part.calibrate(own, outputs)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The scores of the part that changes them, or else the logits."""
        for part, own in self.scoring(helpers):
            return part.scores(student, teacher, own)
        return super().scores(student, teacher, helpers)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """The logits that the part which changes the scores compares, or else both networks'."""
        for part, own in self.scoring(helpers):
            return part.comparable(student, teacher, own)
        return super().comparable(student, teacher, helpers)

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """The rescaling of the part that changes the scores."""
        for part, own in self.scoring(helpers):
            return part.rescaling(own)
        return super().rescaling(helpers)

    def scoring(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """The parts that change the scores, with their helpers (the released ones suffice)."""
        return [
            (part, cast(nn.ModuleDict, helpers[name]))
            for name, part in self.parts().items()
            if changes_scores(part)
        ]


def changes_scores(method: Method) -> bool:
    """True where a method's scores are not the student's logits."""
    kind: Any = type(method)
    return kind.scores is not Method.scores


def _given_first(looks: Iterable[Look]) -> tuple[Look, ...]:
    """Each look once, "given" first."""
    return tuple(sorted(dict.fromkeys(looks), key=lambda look: look != "given"))
