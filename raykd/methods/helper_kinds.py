"""Kinds of helpers that the loop treats in a special way; others are only trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Shared(nn.Module):
    """A helper that needs what the other workers have.

    `gather` joins what every worker has, along the first axis and in the order of the workers;
    the loop sets it. One worker alone has everything. All workers must call it equally often.
    """

    gather: Callable[[Tensor], Tensor] = staticmethod(lambda rows: rows)


class Paced(nn.Module):
    """A helper that is optimised at a rate and a weight decay of its own."""

    rate: float  # learning rate, as a multiple of the run's
    weight_decay: float


class Calibrated(nn.Module):
    """A helper that the teacher sets before the first step, and again where another takes over."""

    known: Tensor  # bool scalar: True once it is set
    given = False  # True where the recipe gives the value, so that no teacher sets it


class Tally(nn.Module, ABC):
    """A helper that counts during the steps; its counts become the epoch's metrics."""

    counts: Tensor

    def __init__(self, *shape: int) -> None:
        """All counts are 0; `shape` is theirs."""
        super().__init__()
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int64), persistent=False)

    @abstractmethod
    def metrics(self, counts: Tensor) -> dict[str, Any]:
        """An epoch's metrics from its `counts` over all workers, on any device."""


def reset_calibration(helpers: nn.Module) -> None:
    """Mark calibrated helpers as unset, so that the next teacher sets them again."""
    for module in helpers.modules():
        if isinstance(module, Calibrated):
            module.known.fill_(module.given)
