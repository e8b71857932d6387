"""Columns derived of a teacher's stages, and the methods that read those in place of its maps.

Shapes: B batch, K channels, H, W pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Union

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.core.open_union import Open
from raykd.core.record import Limits
from raykd.core.registry import Registry
from raykd.core.types import MAP_SUFFIX, Outputs, Shapes, Signal, by_depth
from raykd.methods.base import Method, full_precision, precise
from raykd.methods.derived import Derived
from raykd.methods.feature_maps import attention_map, deepest_stages
from raykd.methods.stage_heads import HeadLogits

ATTENTION = ".attention"  # end of a column's name
_MAPS = Signal.FEATURES | Signal.PREACTIVATIONS
_ALL_FEATURES = _MAPS | Signal.TOKENS


class AttentionMaps(Derived):
    """The `attention_map` of every stage but the stem, as [B, 1, H, W]."""

    name: Literal["attention"] = "attention"

    def reads(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def columns(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """One column a stage: 1 / K of the map's numbers."""
        return {
            f"{stage}{ATTENTION}": attention_map(precise(outputs.features[stage]))
            .unflatten(1, outputs.features[stage].shape[2:])
            .unsqueeze(1)
            for stage in _numbered(outputs)
        }


class StageMaps(Derived):
    """The maps [B, K, H, W] of some stages as they are, by default of all but the stem."""

    name: Literal["maps"] = "maps"
    stages: tuple[str, ...] = ()
    """Stages by name; none: all, or the deepest ones."""
    deepest: int | None = Field(default=None, ge=1, le=Limits.WIDTH)
    """Number of the deepest stages; null: the stages named, or all."""
    before_relu: bool = False
    """Take the maps before the stages' last ReLU."""

    @property
    def label(self) -> str:
        """The stages, as in "maps of stage2"."""
        which = ", ".join(self.stages)
        if self.deepest is not None:
            which = "the last stage" if self.deepest == 1 else f"the last {self.deepest} stages"
        return f"maps of {which or 'all stages'}" + " before ReLU" * self.before_relu

    def reads(self) -> Signal:
        """Stage outputs, or what they are before the last ReLU."""
        return Signal.PREACTIVATIONS if self.before_relu else Signal.FEATURES

    def columns(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """One column a stage, named as in `Outputs.features`."""
        suffix = ".pre" if self.before_relu else ""
        chosen = self.stages or _numbered(outputs)
        if self.deepest is not None:
            chosen = deepest_stages(dict.fromkeys(_stages(outputs)), self.deepest)
        return {f"{stage}{suffix}": precise(outputs.features[stage + suffix]) for stage in chosen}


DERIVED: Registry[type[Derived]] = Registry("column")
DERIVED.add("attention", AttentionMaps)
DERIVED.add("maps", StageMaps)
DERIVED.add("head_logits", HeadLogits)

# Pydantic reads this union; pyright cannot see its members, and need not.
if TYPE_CHECKING:
    AnyDerived = Derived
else:
    _members = Union[tuple(DERIVED.values())]  # noqa: UP007
    AnyDerived = Annotated[_members, Field(discriminator="name"), Open(DERIVED)]


def _stages(outputs: Outputs) -> list[str]:
    """Stages that there is a map of, in depth order."""
    return [*dict.fromkeys(name.removesuffix(".pre") for name in outputs.features if _plain(name))]


def _plain(name: str) -> bool:
    return "." not in name.removesuffix(".pre")


def _numbered(outputs: Outputs) -> list[str]:
    """Stages without the stem, which methods compare."""
    return [stage for stage in _stages(outputs) if stage.startswith("stage")]


def read_by(functions: Iterable[Derived]) -> Signal:
    """Signals that some functions read."""
    signals = Signal(0)
    for function in functions:
        signals |= function.reads()
    return signals


def modules_of(functions: Iterable[Derived], teacher: Shapes, classes: int) -> nn.ModuleDict:
    """The modules of some functions, frozen and in evaluation mode, with random weights."""
    modules = nn.ModuleDict()
    for function in functions:
        modules.update(dict(function.modules(teacher, classes).items()))
    return modules.eval().requires_grad_(False)


def trained_modules(
    functions: Iterable[Derived], teacher: Shapes, classes: int, state: Mapping[str, Tensor]
) -> nn.ModuleDict:
    """The modules of some functions, with the weights in the state of a prelude's helpers."""
    with torch.device("meta"):  # nothing is drawn
        modules = modules_of(functions, teacher, classes)
    modules.load_state_dict(state, assign=True)
    return modules


def with_columns(
    outputs: Outputs, functions: Iterable[Derived], wanted: Signal, modules: nn.ModuleDict
) -> Outputs:
    """Outputs with the columns of some functions, and of the features only what is `wanted`.

    `modules` are those that the functions run. The columns of one kind are in depth order.
    """
    columns: dict[str, Tensor] = {}
    said = outputs.replace(modules=modules)
    with full_precision(outputs.any_tensor):
        for function in functions:
            columns.update(function.columns(said))
    columns = {name: columns[name] for name in sorted(columns, key=by_depth)}
    features = outputs.features
    if not wanted & _ALL_FEATURES:
        features = {k: v for k, v in features.items() if k.endswith(MAP_SUFFIX)}
    return outputs.replace(derived=columns, features=features)


def shapes_of_columns(
    functions: Sequence[Derived], teacher: Shapes, classes: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of the columns for one sample: K, or K, H and W."""
    maps: dict[str, Tensor] = {}
    for stage, shape in teacher.features.items():
        maps |= dict.fromkeys((stage, f"{stage}.pre"), torch.zeros(1, *shape))
    if maps:
        maps[[*teacher.features][-1] + MAP_SUFFIX] = [*maps.values()][-1]
    logits = torch.zeros(1, teacher.classes) if teacher.classes else None
    zeros = Outputs(logits, maps, torch.zeros(1, teacher.embedding))
    with torch.device("meta"):  # nothing is drawn
        modules = modules_of(functions, teacher, classes)
    derived = with_columns(zeros, functions, Signal(0), modules.to_empty(device="cpu")).derived
    return {name: tuple(column.shape[1:]) for name, column in derived.items()}


class FromColumns(Method):
    """A method that may read columns of a cache in place of a frozen teacher's maps. Abstract.

    A subclass says in `columns` what stands for the teacher's maps, and in `student_needs` what it
    reads of the student and of a live teacher, where that is more than stage outputs.
    """

    source: Literal["live", "cache"] = "live"
    """Source of the teacher's maps: its network, or what a cache holds of them (`cache`), without
    the network.
    """

    @abstractmethod
    def columns(self) -> tuple[Derived, ...]:
        """The functions of the teacher's outputs that stand for its maps: one or more."""

    def derived(self) -> tuple[Derived, ...]:
        """The functions, where the source is a cache."""
        return self.columns() if self.source == "cache" else ()

    def student_needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def needs(self) -> Signal:
        """The same of the teacher, with columns in place of maps where they are read."""
        live = self.student_needs()
        return live & ~_MAPS | Signal.DERIVED if self.source == "cache" else live

    def maps_of_teacher(self, teacher: Outputs) -> Mapping[str, Tensor]:
        """The columns, named as the features that they are."""
        return teacher.derived if self.source == "cache" else teacher.features
