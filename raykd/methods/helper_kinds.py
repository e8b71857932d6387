"""Roles that a helper can have in the loop; others are just trained."""

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

    rate: float  # times the run's
    weight_decay: float


class Calibrated(nn.Module):
    """A helper that the teacher sets before the first step, and again where another takes over."""

    known: Tensor  # bool: whether it is set
    given = False  # whether the recipe says what it is, so that no teacher sets it


class Tally(nn.Module, ABC):
    """A helper that counts in every step what the epoch's metrics then say."""

    counts: Tensor

    def __init__(self, *shape: int) -> None:
        """All counts are 0; `shape` is theirs."""
        super().__init__()
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int64), persistent=False)

    @abstractmethod
    def metrics(self, counts: Tensor) -> dict[str, Any]:
        """What to say of an epoch, from its `counts` over all workers, on any device."""


def forget(helpers: nn.Module) -> None:
    """Let what a teacher has set be set again by the one that takes over."""
    for module in helpers.modules():
        if isinstance(module, Calibrated):
            module.known.fill_(module.given)
