"""FLOPs of a network's forward: a multiply-add is two, and only products are counted."""

from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from raykd import models


def flop_counter(model: str) -> "FlopCounterMode | PlainCounter":
    """A counter of what the network of that name computes inside its context."""
    return PlainCounter() if models.is_plain(model) else FlopCounterMode(display=False)


class PlainCounter(TorchFunctionMode):
    """FLOPs of convolutions and linear layers, which are all products of a plain network.

    It counts what `FlopCounterMode` does, without importing torch's compiler: 1.5 CPU seconds of
    every process that trains.
    """

    def __init__(self) -> None:
        super().__init__()
        self._total = 0

    def get_total_flops(self) -> int:
        """FLOPs so far."""
        return self._total

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, and count."""
        result = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.linear):
            weight = args[1]
            self._total += 2 * result.numel() * weight[0].numel()
        return result
