"""Entropy-weighted distillation from several teachers: the surer of a sample count more.

Shapes: B batch, C classes, M teachers.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.core.types import Batch
from raykd.methods.panel_kd import PanelKD


class EBKD(PanelKD):
    """weight * mean over samples of sum over teachers of w_m * T**2 KL(t_m || s).

    w_m = (1 - H_m / sum of H) / (M - 1), with the entropies H at temperature 1; they sum to 1. Kwon
    et al. 2020 (ICASSP), as Rorozhl/CA-MKD has it, whose code's sum is (M - 1) / M: set
    `normalise: false`. That they sum to 1 by default is ours.
    """

    title: ClassVar[str] = "Kwon et al. 2020, ICASSP; code of CA-MKD"

    name: Literal["ebkd"] = "ebkd"
    normalise: bool = True
    """Weights that sum to 1; false: to (M - 1) / M."""

    def teacher_weights(
        self, student: Tensor, teachers: Tensor, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """Weights [M, B]."""
        logs, count = teachers.log_softmax(-1), len(teachers)
        # Teachers that are all sure have equal shares.
        entropies = -(logs.exp() * logs.clamp_min(-1e9)).sum(-1) + 1e-12
        shares = 1 - entropies / entropies.sum(0)
        return shares / (count - 1 if self.normalise else count)
