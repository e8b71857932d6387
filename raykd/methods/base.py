"""What a method is: hyperparameters, and functions from two networks' outputs to losses.

A method never sees an optimiser, a device or a worker, and runs no network. Its fields are
what an experiment file may set and what the fingerprint covers. It holds no tensors:
whatever it trains or remembers lives in the module that `helpers` returns, which the loop
optimises, averages over workers and checkpoints together with the student.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from raykd.record import Record
from raykd.types import Batch, Outputs, Shapes, Signal


def _checked(schedule: "float | tuple[tuple[int, float], ...]"):
    """The schedule itself, once its epochs are seen to start at 0 and rise."""
    if isinstance(schedule, tuple):
        epochs = [epoch for epoch, _ in schedule]
        if epochs[:1] != [0] or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"the epochs of a schedule start at 0 and rise; got {epochs}")
    return schedule


# A number, or its value from given epochs on: [[0, 0.9], [60, 0.5], [80, 0.1]].
Schedule = Annotated[float | tuple[tuple[int, float], ...], AfterValidator(_checked)]


def at(schedule: float | tuple[tuple[int, float], ...], epoch: int) -> float:
    """The value of a schedule in one epoch (from 0)."""
    if isinstance(schedule, tuple):
        return [value for start, value in schedule if start <= epoch][-1]
    return schedule


class Method(Record):
    """One way to distil. A subclass is final: to change a method, wrap it."""

    title: ClassVar[str] = ""  # the paper, with its arXiv number or venue
    label_weight: ClassVar[Schedule] = 1.0  # of the labels' cross entropy, where a run names none

    name: str

    def needs(self) -> Signal:
        """The signals that `scores` and `losses` read, of both networks."""
        return Signal.LOGITS

    def helpers(self, student: Shapes, teacher: Shapes) -> nn.ModuleDict:
        """Modules trained with the student, and buffers kept between steps; none by default."""
        return nn.ModuleDict()

    def calibrates(self, helpers: nn.ModuleDict) -> bool:
        """Whether `calibrate` has work to do before the first step."""
        return False

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set buffers in `helpers` from the teacher's outputs for training samples."""

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The logits [B, C] that the labels' cross entropy reads, and probabilities come from.

        `teacher` is None where a student is used without its teacher.
        """
        return student.logits.float()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Weighted scalar losses, keyed by the spot that each compares.

        A spot is "logits", "embedding" or a stage's name. A loss is a mean over the rows of
        its spot and reads no other spot, so that the spot-adaptive wrapper can hand it a
        subset of rows.
        """
        raise NotImplementedError


def full_precision(tensor: Tensor) -> torch.autocast:
    """A region in which autocast is off: losses are computed in float32."""
    return torch.autocast(tensor.device.type, enabled=False)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of two sets of logits [B, C] at `temperature`, in nats.

    Summed over C, averaged over B and multiplied by temperature**2, which keeps its gradient
    on the scale of a cross entropy's (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
