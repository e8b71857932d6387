"""Kinds of helpers that the training loop treats specially; others are only trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Shared(nn.Module):
    """Helper that gathers tensors from all workers.

    `gather` concatenates the rows of all workers along the first axis, in the order of the workers;
    the loop sets it. With one worker it is the identity. All workers must call it equally often.
    """

    gather: Callable[[Tensor], Tensor] = staticmethod(lambda rows: rows)


class Paced(nn.Module):
    """Helper with its own learning rate and weight decay."""

    rate: float  # learning rate, as a multiple of the run's
    weight_decay: float  # absolute


class Calibrated(nn.Module):
    """Helper whose buffers are set from the teacher, before the first step and at a new anchor."""

    known: Tensor  # bool scalar: True once it is set
    fixed = False  # True where the recipe has the value, so that no teacher sets it


class Fitted(Calibrated, ABC):
    """Helper that is fitted to vectors of the teacher's, which it need not see all at once."""

    @abstractmethod
    def observe(self, vectors: Tensor) -> None:
        """Take in a block of vectors."""

    @abstractmethod
    def settle(self) -> None:
        """Set the buffers by all that was observed, which is then forgotten."""

    def calibrate(self, blocks: Iterable[Tensor]) -> None:
        """Fit it to blocks of vectors."""
        for block in blocks:
            self.observe(block)
        self.settle()


class Tally(nn.Module, ABC):
    """Helper that counts during the steps of an epoch and turns the counts into metrics."""

    counts: Tensor

    def __init__(self, *shape: int) -> None:
        """Zero counts of this shape."""
        super().__init__()
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int64), persistent=False)

    @abstractmethod
    def metrics(self, counts: Tensor) -> dict[str, Any]:
        """Metrics of an epoch from its `counts` over all workers, on any device."""


def reset_calibration(helpers: nn.Module) -> None:
    """Mark `Calibrated` helpers as unset, so that the next teacher sets them again."""
    for module in helpers.modules():
        if isinstance(module, Calibrated):
            module.known.fill_(module.fixed)
