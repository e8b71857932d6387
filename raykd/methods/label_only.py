"""No distillation: the student learns from the labels alone. The baseline of every table."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method


class LabelOnly(Method):
    """Cross entropy with the labels, which the learner computes for every method; no teacher."""

    title: ClassVar[str] = "baseline: cross entropy with the labels"
    cost: ClassVar[str] = "nothing"

    name: Literal["label_only"] = "label_only"

    def needs(self) -> Signal:
        """No signals: there is no teacher."""
        return Signal(0)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """No loss besides the labels'."""
        return {}
