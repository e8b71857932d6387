"""Every logit as one of 256 levels."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from raykd.core.types import Outputs
from raykd.outputs.codecs.base import Codec

_LEVELS = 255  # steps between the extremes of a row
_COARSEST = 4.0  # step, in units of the logits


class Int8(Codec):
    """Every logit as one of 256 levels between the row's extremes: C + 8 bytes a row.

    Off by up to 1/510 of the row's range: as far from the teacher as its own bfloat16 forward is.
    """

    name: Literal["int8"] = "int8"

    def encode_logits(self, shifted: Tensor, maximum: Tensor) -> dict[str, Tensor]:
        """`levels` uint8 [n, C]: the number of `step` float32 [n] below `maximum` float32 [n].

        Raises `ValueError` where 256 levels are too few for a row.
        """
        step = shifted.amin(dim=1) / -_LEVELS
        if bool((step > _COARSEST).any()):
            row = int(step.argmax())
            raise ValueError(
                f"the teacher's logits of row {row} of this batch lie up to "
                f"{_LEVELS * float(step[row]):.0f} apart, too far for the 256 levels of codec "
                "'int8'; use codec: dense or topk"
            )
        levels = (shifted / -step.clamp_min(torch.finfo().tiny)[:, None]).round()
        return {"maximum": maximum, "levels": levels.to(torch.uint8), "step": step}

    def decode_logits(
        self, columns: Mapping[str, Tensor], rows: Tensor, classes: int | None
    ) -> Outputs:
        """Logits [B, C]."""
        maximum = columns["maximum"].index_select(0, rows).unsqueeze(1)  # indexing parses slower
        step = columns["step"].index_select(0, rows).unsqueeze(1)
        levels = columns["levels"].index_select(0, rows).float()
        return Outputs(levels.mul_(-step).add_(maximum))

    def logits_bytes(self, classes: int) -> int:
        """C + 8."""
        return classes + 8

    def tolerance(self, live: Tensor) -> Tensor:
        """Half a step more than float16's."""
        extremes = live.amax(dim=1, keepdim=True) - live.amin(dim=1, keepdim=True)
        return super().tolerance(live) + extremes / 510
