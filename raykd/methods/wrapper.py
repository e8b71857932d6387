"""Base class of methods that wrap other methods."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Literal, cast

from torch import Tensor, nn

from raykd.core.record import canonical
from raykd.core.types import Look, Outputs, Signal
from raykd.methods.base import Coverage, Looks, Method, Prelude
from raykd.methods.derived import Derived


class Wrapper(Method):
    """Method made of parts with separate helpers: `combine`, `sakd`. Abstract.

    Delegates to its parts; subclasses name them and compute the losses. At most one part has a
    prelude, mixes samples or changes the scores.
    """

    @abstractmethod
    def parts(self) -> Mapping[str, Method]:
        """Wrapped methods by the key of their helpers."""

    def with_helpers(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """Each part with its helpers."""
        return [(part, cast(nn.ModuleDict, helpers[name])) for name, part in self.parts().items()]

    def needs(self) -> Signal:
        """Union of the parts' signals."""
        needs = Signal(0)
        for part in self.parts().values():
            needs |= part.needs()
        return needs

    def student_needs(self) -> Signal:
        """Union of the parts' signals of the student."""
        needs = Signal(0)
        for part in self.parts().values():
            needs |= part.student_needs()
        return needs

    def derived(self) -> tuple[Derived, ...]:
        """The parts' functions, in an order that is not the parts'."""
        every = (one for part in self.parts().values() for one in part.derived())
        functions = {canonical(one): one for one in every}
        return tuple(functions[key] for key in sorted(functions))

    def accepts(self, coverage: Coverage) -> bool:
        """True where all parts accept the coverage."""
        return all(part.accepts(coverage) for part in self.parts().values())

    def looks(self) -> Looks:
        """Union of the parts' looks, "given" first if it is among them."""
        every = [part.looks() for part in self.parts().values()]
        return Looks(
            _given_first(look for looks in every for look in looks.student),
            _given_first(look for looks in every for look in looks.teacher),
        )

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """Mixing of the part that mixes."""
        return next(filter(None, (part.mixing() for part in self.parts().values())), None)

    def map_grid(self) -> int | None:
        """The grid of all parts that read maps; None where they are not of one mind."""
        parts = [part for part in self.parts().values() if Signal.MAP in part.needs()]
        grids = {part.map_grid() for part in parts}
        return grids.pop() if len(grids) == 1 else None

    def prelude(self) -> Prelude | None:
        """Prelude of the part that has one."""
        return next(filter(None, (part.prelude() for part in self.parts().values())), None)

    def reads_labels(self) -> bool:
        """True where any part does."""
        return any(part.reads_labels() for part in self.parts().values())

    def has_memory(self) -> bool:
        """True where any part has one."""
        return any(part.has_memory() for part in self.parts().values())

    def load_prelude(self, helpers: nn.ModuleDict, prelude_state: Mapping[str, Tensor]) -> None:
        """Load the prelude's helpers into those of the part that has the prelude."""
        for part, part_helpers in self.with_helpers(helpers):
            if part.prelude() is not None:
                part.load_prelude(part_helpers, prelude_state)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """Released helpers of all parts, by part."""
        pairs = zip(self.parts(), self.with_helpers(helpers), strict=True)
        released = {name: part.releases(part_helpers) for name, (part, part_helpers) in pairs}
        return nn.ModuleDict({name: modules for name, modules in released.items() if len(modules)})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True where any part needs it."""
        return bool(self._uncalibrated(helpers))

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Calibrate the parts that need it, all from the same outputs."""
        for part, part_helpers in self._uncalibrated(helpers):
            part.calibrate(part_helpers, teacher)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """Scores of the part that changes them, otherwise the logits."""
        for part, part_helpers in self._scoring(helpers):
            return part.scores(student, teacher, part_helpers)
        return super().scores(student, teacher, helpers)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """Those of the part that changes the scores, otherwise both networks' logits."""
        for part, part_helpers in self._scoring(helpers):
            return part.comparable(student, teacher, part_helpers)
        return super().comparable(student, teacher, helpers)

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """Rescaling of the part that changes the scores, otherwise the identity."""
        for part, part_helpers in self._scoring(helpers):
            return part.rescaling(part_helpers)
        return super().rescaling(helpers)

    def _uncalibrated(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """Parts that need calibration, with their helpers."""
        return [pair for pair in self.with_helpers(helpers) if pair[0].needs_calibration(pair[1])]

    def _scoring(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """Parts that change the scores, with their helpers; only released helpers are needed."""
        return [
            (part, cast(nn.ModuleDict, helpers[name]))
            for name, part in self.parts().items()
            if changes_scores(part)
        ]


def changes_scores(method: Method) -> bool:
    """True where a method overrides `scores`."""
    return type(method).scores is not Method.scores


def _given_first(looks: Iterable[Look]) -> tuple[Look, ...]:
    """Distinct looks, "given" first."""
    return tuple(sorted(dict.fromkeys(looks), key=lambda look: look != "given"))
