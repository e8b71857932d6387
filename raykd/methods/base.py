"""The interface of methods: hyperparameters, and functions from two networks' outputs to losses.

A method never sees an optimiser, a device or a worker, and runs no network (spot-adaptive
distillation, whose policy learns from running both, is the exception). Its fields are
what an experiment file may set and what the fingerprint covers. It holds no tensors:
whatever it trains or remembers lives in the module that `helpers` returns, which the loop
optimises, averages over workers and checkpoints together with the student.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from raykd.core.record import Limits, Record
from raykd.core.types import Batch, Look, Outputs, Shapes, Signal

MASKED_LOGIT = -1e9  # a logit without probability; finite, so that no difference of two is NaN
_AS_IS = nullcontext()


def _checked(schedule: "float | tuple[tuple[int, float], ...]"):
    """The schedule itself, once its epochs are seen to start at 0 and rise."""
    if isinstance(schedule, tuple):
        epochs = [epoch for epoch, _ in schedule]
        if epochs[:1] != [0] or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"the epochs of a schedule start at 0 and rise; got {epochs}")
    return schedule


# A number, or its value from given epochs on: [[0, 0.9], [60, 0.5], [80, 0.1]].
_Epoch = Annotated[int, Field(ge=0, le=Limits.EPOCHS)]
_Weight = Annotated[float, Field(ge=-Limits.WEIGHT, le=Limits.WEIGHT)]
Schedule = Annotated[_Weight | tuple[tuple[_Epoch, _Weight], ...], AfterValidator(_checked)]


def value_at(schedule: float | tuple[tuple[int, float], ...], epoch: int) -> float:
    """The value of a schedule in one epoch (from 0)."""
    if isinstance(schedule, tuple):
        return [value for start, value in schedule if start <= epoch][-1]
    return schedule


def warmup_factor(epoch: int, epochs: int) -> float:
    """Warm-up factor of a loss: (epoch + 1) / epochs, at most 1."""
    return min(1.0, (epoch + 1) / epochs) if epochs else 1.0


def canonical(name: str) -> AfterValidator:
    """Reads an alias as the name that it stands for, so that both have one fingerprint."""
    return AfterValidator(lambda given: name)


@dataclass(frozen=True)
class Looks:
    """The ways of looking at a batch's samples that a method reads; the first is the main one."""

    student: tuple[Look, ...] = ("given",)
    teacher: tuple[Look, ...] = ("given",)


@dataclass(frozen=True)
class Prelude:
    """Training that is done once before a method's own, and kept as an artefact.

    Helpers of both methods that have the same name start from it, and so does the student
    where the prelude trains its backbone.
    """

    method: "Method"
    epochs: int
    lr: float | None = None  # constant; None: the student's first rate


@dataclass(frozen=True)
class Coverage:
    """Part of each row of a teacher's logits that is available, and where it suffices.

    `classes`: a logit for "all" of them; for "some", with the others filled in; or some and one
    logit for all others, "merged". Divergences are near those of all logits at temperatures from
    `min_temperature` to `max_temperature`.
    """

    classes: Literal["all", "some", "merged"] = "all"
    min_temperature: float = 0.0
    max_temperature: float = math.inf

    def suits(self, temperature: float) -> bool:
        """True where a divergence at this temperature is near that from all classes' logits."""
        return self.min_temperature <= temperature <= self.max_temperature


class Method(Record):
    """One way to distil. A subclass is final: to change a method, wrap it."""

    title: ClassVar[str] = ""  # the paper, with its arXiv number or venue
    cost: ClassVar[str] = "B C"  # operations of the loss alone, in shape letters
    label_weight: ClassVar[Schedule] = 1.0  # the cross entropy's, where a run names none
    trains: ClassVar[Literal["student", "backbone", "helpers"]] = "student"  # besides helpers
    released: ClassVar[tuple[str, ...]] = ()  # helpers without which the student cannot be used
    combine_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # as a part of `combine`
    sakd_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # as the base of `sakd`
    joint: ClassVar[bool] = False  # True where a spot's loss reads other spots, too

    name: str

    @property
    def label(self) -> str:
        """The method's name in tables, with its parts where it has some."""
        return self.name

    def needs(self) -> Signal:
        """The signals that `scores` and `losses` read, of both networks."""
        return Signal.LOGITS

    def accepts(self, coverage: Coverage) -> bool:
        """True where the losses are right with so much of the teacher's logits.

        By default with all classes, or where no logits are read.
        """
        return coverage.classes == "all" or Signal.LOGITS not in self.needs()

    def looks(self) -> Looks:
        """The looks at the samples that each network is run on."""
        return Looks()

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """The mixing that the method asks for, with Beta's parameter; None: the data's."""
        return None

    def prelude(self) -> Prelude | None:
        """The training that comes before the method's own, if any."""
        return None

    def trains_teacher(self) -> bool:
        """True where the method's losses train the teacher together with the student."""
        return False

    def head_in_eval_mode(self) -> bool:
        """True where all after the student's stages stays in evaluation mode in training."""
        return False

    def has_memory(self) -> bool:
        """True where helpers keep something of each training sample, by its id.

        Such a method takes no mixed samples, which are of two ids.
        """
        return False

    def weight_of_labels(self) -> Schedule:
        """The weight of the labels' cross entropy, where a run names none."""
        return self.label_weight

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The spots that `losses` are keyed by, and what of the teacher each is compared with.

        In depth order; `student` and `teacher` are features or their shapes, by stage.
        """
        spot = "embedding" if Signal.EMBEDDING in self.needs() else "logits"
        return {spot: spot}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Modules trained with the student, and buffers kept between steps; none by default.

        `targets` (int64 [N]) are the labels of the training rows, which `Batch.ids` count. Raises
        `ConfigError` where the two networks do not suit the method.
        """
        return nn.ModuleDict()

    def load_prelude(self, helpers: nn.ModuleDict, found: Mapping[str, Tensor]) -> None:
        """Set helpers to what the prelude's helpers of the same names became.

        `found` is the state of the prelude's helpers.
        """
        for name, helper in helpers.items():
            start = f"{name}."
            state = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
            if state:
                helper.load_state_dict(state)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """The helpers that are kept with the finished student."""
        return nn.ModuleDict({name: helpers[name] for name in self.released})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True where `calibrate` must be called before the first step."""
        return False

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set buffers in `helpers` from the teacher's outputs for training samples."""

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The logits [B, C] that the labels' cross entropy reads, and probabilities come from.

        `teacher` is None where a student is used without its teacher.
        """
        return precise(student.logits)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """The logits [B, C] of student and teacher, by which the method compares the two.

        The greedy search of a route measures distances between these. By default the student's
        scores and the teacher's own logits; a method whose scores are normalised logits normalises
        the teacher's, too.
        """
        return self.scores(student, None, helpers), precise(teacher.logits)

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """The function from the plain network's logits to `scores`: the identity ({}) by default.

        As words and numbers that need no raykd: the `kind` of function and its constants. None
        where the scores are no function of the logits.
        """
        return {}

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Weighted scalar losses, keyed by the spot that each compares.

        The teacher's outputs carry no autograd graph, unless the method trains the teacher.
        A spot is "logits", "embedding" or a stage's name. A loss is a mean over the rows of
        its spot and reads no other spot (unless `joint`), so that spot-adaptive distillation can
        hand it a subset of rows; with more than one spot it reads no rows of `batch`, either.
        Where a helper is `Shared`, it must also work on no rows at all.
        """
        raise NotImplementedError


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A region in which autocast is off: losses are computed in float32."""
    device = tensor.device.type
    # Where it is off already, to enter and leave a region would be a tenth of a small loss.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IS


def precise(tensor: Tensor) -> Tensor:
    """The tensor as float32, or as float64 where it is that."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def without_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [B, C] with the label's class (int64 [B]) taken out: its probability is 0.

    Its logit is finite, so that no difference of two is NaN, and gets no gradient. To pick the
    other columns by a mask would take three times as long, and make a GPU wait for their count.
    """
    return logits.scatter(1, labels[:, None], MASKED_LOGIT)


def logsumexp_without(logits: Tensor, kept: Tensor) -> Tensor:
    """The logsumexp [B] of the logits [B, C] without the classes `kept` (int64 [B, k])."""
    return logits.scatter(1, kept, MASKED_LOGIT).logsumexp(1)


def match_classes(student: Outputs, teacher: Outputs) -> Outputs:
    """The student's outputs over the classes that the teacher's logits are over.

    Where the teacher's keep k classes and merge the others, the student's [B, C] become [B, k + 1]:
    the logits of the same k classes, and the logsumexp of all others. Otherwise they stay.
    """
    if teacher.kept is None:
        return student
    with full_precision(student.logits):
        logits = precise(student.logits)
        merged = logsumexp_without(logits, teacher.kept)[:, None]
        return student.replace(logits=torch.cat([logits.gather(1, teacher.kept), merged], dim=1))


def standardise(logits: Tensor) -> Tensor:
    """Logits [B, C] with each row shifted to mean 0 and scaled to unbiased std 1.

    Sun et al. 2024, arXiv 2403.01427, equation 9; 1e-7 is added to the std, as in its code.
    """
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + 1e-7)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(teacher || student) of two sets of logits [B, C] at `temperature`, in nats.

    Summed over C, averaged over B and multiplied by temperature**2, which keeps its gradient
    on the scale of a cross entropy's (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    return divergence(student, F.log_softmax(teacher / temperature, dim=1), temperature)


def divergence(student: Tensor, target: Tensor, temperature: float | Tensor) -> Tensor:
    """`soft_cross_entropy` of a target of log-probabilities [B, C] at `temperature`."""
    log_student = F.log_softmax(student / temperature, dim=1)
    mean = F.kl_div(log_student, finite(target), reduction="batchmean", log_target=True)
    return mean * temperature**2


def finite(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities with a finite log 0, so that a class left out adds 0 and no NaN."""
    return log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)
