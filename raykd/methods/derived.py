"""The interface of derived columns: pure functions of a frozen teacher's outputs.

A method names functions in `Method.derived`. A cache evaluates them once for a view and holds what
they give; without a cache the live teacher's outputs go through the same functions.

Shapes: B batch, C classes, K channels, H, W pixels.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from raykd.core.record import Record
from raykd.core.types import Outputs, Shapes, Signal


class Derived(Record):
    """A function of a teacher's outputs; its name and fields are part of a cache's fingerprint.

    A column's name is its spot, with what it is where that is not the spot's own output:
    "stage2.attention". Equal names are equal tensors, whichever function gives them. A subclass is
    final, and has a line in the table of `columns.py`, or is a plugin's (`register.column`).
    """

    trained: ClassVar[bool] = False  # True where a prelude of the run trains its modules

    name: str = ""
    """Name of the function; empty where it is not registered."""

    @property
    def label(self) -> str:
        """Name and fields, for tables."""
        return self.name

    @abstractmethod
    def reads(self) -> Signal:
        """Signals of the teacher that `columns` reads."""

    def modules(self, teacher: Shapes, classes: int) -> nn.ModuleDict:
        """Modules that `columns` runs, with the names that the prelude's helpers have; or none."""
        return nn.ModuleDict()

    @abstractmethod
    def columns(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """The columns by name, float32 [B, K] or [B, K, H, W], in depth order.

        Its modules are among `outputs.modules`.
        """
