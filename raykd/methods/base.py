"""The interface of methods: hyperparameters, and functions from two networks' outputs to losses.

`Method` is the interface itself. `LogitMethod` and `SpotMethod` are for losses that compare one
pair of tensors, `LabelMethod` is for methods without a loss of their own.

A method never sees an optimiser, a device or a worker, and runs no network (spot-adaptive
distillation, whose policy learns from running both, is the exception). Its fields are
what an experiment file may set and what the fingerprint covers. It holds no tensors:
whatever it trains or remembers lives in the module that `helpers` returns, which the loop
optimises, averages over workers and checkpoints together with the student.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Discriminator, Field, Tag
from torch import Tensor, nn

from raykd.core.record import Limits, Record
from raykd.core.types import NOTHING, Batch, Look, Outputs, Shapes, Signal
from raykd.methods.derived import Derived
from raykd.methods.helper_kinds import Calibrated

MASKED_LOGIT = -1e9  # probability 0, but finite: a difference of two is not NaN
_AUTOCAST_UNCHANGED = nullcontext()

Stages = Mapping[str, object]  # features or their shapes, by stage, in depth order
Target = Literal["view", "view_mean"]
Trains = Literal["student", "backbone", "helpers"]


_Epoch = Annotated[int, Field(ge=0, le=Limits.EPOCHS)]
_Weight = Annotated[float, Field(ge=-Limits.WEIGHT, le=Limits.WEIGHT)]


class Ramp(Record):
    """A value that changes from epoch to epoch: `{ramp: [0, 120, 0.0, 1.0]}`.

    `ramp` is a first and a last epoch, and the values up to the one and from the other on. Between
    them a share s of the way is done in a share t of the epochs: s = t, or exp(-5 (1 - t)**2) for
    `sigmoid`, which jumps to 0.7 % at the first epoch (Laine and Aila 2017, arXiv 1610.02242,
    appendix A; t = epoch / 80 in ONE, Lan et al. 2018, arXiv 1806.04606).
    """

    ramp: tuple[_Epoch, _Epoch, _Weight, _Weight]
    """[first epoch, last epoch, value before, value after]; epochs count from 0."""
    kind: Literal["linear", "sigmoid"] = "linear"
    """Shape of the change between both epochs: straight, or as exp(-5 (1 - t)**2)."""

    def at(self, epoch: int) -> float:
        """The value in one epoch (from 0)."""
        first, last, before, after = self.ramp
        if epoch >= last:
            return after
        t = max(0, epoch - first) / (last - first)
        share = t if self.kind == "linear" else math.exp(-5 * (1 - t) ** 2)
        return before + (after - before) * share


def _check_schedule(schedule: "float | tuple[tuple[int, float], ...] | Ramp"):
    """The schedule, unchanged. Raises `ValueError` unless its epochs start at 0 and rise."""
    if isinstance(schedule, tuple):
        epochs = [epoch for epoch, _ in schedule]
        if epochs[:1] != [0] or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"the epochs of a schedule start at 0 and rise; got {epochs}")
    if isinstance(schedule, Ramp) and schedule.ramp[0] >= schedule.ramp[1]:
        raise ValueError(
            "a ramp is [first epoch, last epoch, value before, value after], and its epochs rise; "
            f"got {list(schedule.ramp)}"
        )
    return schedule


def _kind_of_schedule(value: Any) -> str:
    """Tag of a schedule's form, so that a mistake is told of the form that was meant."""
    if isinstance(value, dict | Ramp):
        return "Ramp"
    return "<steps>" if isinstance(value, list | tuple) else "<number>"


# A constant, pairs (first epoch, value) as in [[0, 0.9], [60, 0.5], [80, 0.1]], or a ramp.
Schedule = Annotated[
    Annotated[_Weight, Tag("<number>")]
    | Annotated[tuple[tuple[_Epoch, _Weight], ...], Tag("<steps>")]
    | Annotated[Ramp, Tag("Ramp")],
    Discriminator(_kind_of_schedule),
    AfterValidator(_check_schedule),
]


def value_at(schedule: float | tuple[tuple[int, float], ...] | Ramp, epoch: int) -> float:
    """The value of a schedule in one epoch (from 0)."""
    if isinstance(schedule, Ramp):
        return schedule.at(epoch)
    if isinstance(schedule, tuple):
        return [value for start, value in schedule if start <= epoch][-1]
    return schedule


def warmup_factor(epoch: int, epochs: int) -> float:
    """Warm-up factor of a loss: (epoch + 1) / epochs, at most 1."""
    return min(1.0, (epoch + 1) / epochs) if epochs else 1.0


def canonical(name: str) -> AfterValidator:
    """Validator that replaces an alias by `name`, so that both have one fingerprint."""
    return AfterValidator(lambda alias: name)


@dataclass(frozen=True)
class Looks:
    """Views of a batch's samples on which each network is run; the first is the main one."""

    student: tuple[Look, ...] = ("given",)
    teacher: tuple[Look, ...] = ("given",)


@dataclass(frozen=True)
class Prelude:
    """Training stage before a method's own; its result is an artefact that students share.

    Helpers with the same name in both methods start from its weights, and so does the student
    where the prelude trains the backbone.
    """

    method: "Method"
    epochs: int
    lr: float | None = None  # constant learning rate; None: the student's first one


@dataclass(frozen=True)
class Coverage:
    """Classes whose teacher logits are available, and temperatures at which they suffice.

    `classes`: "all"; "some", with the other logits filled in; or "merged": some, and one logit
    for all others together. From `min_temperature` to `max_temperature`, divergences are close to
    those of all logits.
    """

    classes: Literal["all", "some", "merged"] = "all"
    min_temperature: float = 0.0
    max_temperature: float = math.inf

    def suits(self, temperature: float) -> bool:
        """True where a divergence at this temperature is close to that of all logits."""
        return self.min_temperature <= temperature <= self.max_temperature


class Method(Record):
    """Distillation method: a frozen record of hyperparameters, and its losses.

    A subclass is abstract or final: to change a method, wrap it.
    """

    title: ClassVar[str] = ""  # the paper, with its arXiv number or venue
    cost: ClassVar[str] = "B C"  # operations of the loss alone, in shape letters
    label_weight: ClassVar[Schedule] = 1.0  # weight of the labels' cross entropy by default
    trains: ClassVar[Trains] = "student"  # the part that is trained, besides the helpers
    released: ClassVar[tuple[str, ...]] = ()  # helpers that inference needs
    combine_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # as a part of `combine`
    sakd_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # as the base of `sakd`
    joint: ClassVar[bool] = False  # True where the loss of a spot reads other spots, too
    # True where the losses read no teacher: `needs()` is empty, and `losses` is called with None.
    teacherless: ClassVar[bool] = False
    # True where the losses read each of several teachers, `Outputs.panel`, or else the one.
    panel: ClassVar[bool] = False
    # True where the student's embedding, or its helper "projection" of it, becomes the teacher's.
    matches: ClassVar[bool] = False

    name: str
    """Name of the method, or an alias; a name alone takes every default."""

    @property
    def label(self) -> str:
        """Name in tables, with the names of wrapped methods."""
        return self.name

    def needs(self) -> Signal:
        """Signals of the teacher that `scores` and `losses` read."""
        return Signal.LOGITS

    def student_needs(self) -> Signal:
        """Signals of the student that they read; by default those of the teacher."""
        return self.needs()

    def derived(self) -> tuple[Derived, ...]:
        """Functions whose columns of the teacher the losses read, with `Signal.DERIVED`."""
        return ()

    def origins(self) -> Iterator[str]:
        """Digests of the plugins of its class and of the functions of its columns."""
        yield from super().origins()
        for function in self.derived():
            yield from function.origins()

    def maps_of_teacher(self, teacher: Outputs) -> Mapping[str, Tensor]:
        """The maps of the teacher that the losses read, by stage; those before a ReLU as ".pre"."""
        return teacher.features

    def accepts(self, coverage: Coverage) -> bool:
        """True where the losses are right with this part of the teacher's logits.

        By default where it has all classes, or where the method reads no logits.
        """
        return coverage.classes == "all" or Signal.LOGITS not in self.needs()

    def looks(self) -> Looks:
        """Views of the samples on which each network is run."""
        return Looks()

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """Mixing that the method requires, and its Beta(alpha, alpha); None: the data's."""
        return None

    def map_grid(self) -> int | None:
        """Cells per side to which the losses pool the teacher's last map; None: they do not."""
        return None

    def prelude(self) -> Prelude | None:
        """Training stage before the method's own, if any."""
        return None

    def trains_teacher(self) -> bool:
        """True where the method's losses train the teacher together with the student."""
        return False

    def head_in_eval_mode(self) -> bool:
        """True where what follows the student's stages stays in evaluation mode in training."""
        return False

    def reads_labels(self) -> bool:
        """True where the losses read labels."""
        return False

    def has_memory(self) -> bool:
        """True where helpers keep a memory bank with a row for each training sample.

        Such a method takes no mixed samples, which have two ids.
        """
        return False

    def weight_of_labels(self) -> Schedule:
        """Weight of the labels' cross entropy, unless the run sets `label_weight`."""
        return self.label_weight

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """Spots of the student that `losses` are keyed by -> spot of the teacher, in depth order.

        A spot is "logits", "embedding" or the name of a stage.
        """
        spot = "embedding" if Signal.EMBEDDING in self.needs() else "logits"
        return {spot: spot}

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where the networks do not suit; called by the default `helpers`."""

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Modules trained with the student, and buffers kept between steps; none by default.

        `targets` (int64 [N]) are the labels of the training rows, which `Batch.ids` index. A
        teacherless method is given the student's shapes twice. Raises `ConfigError` where the two
        networks do not suit the method.
        """
        self.check(student, teacher)
        return nn.ModuleDict()

    def load_prelude(self, helpers: nn.ModuleDict, prelude_state: Mapping[str, Tensor]) -> None:
        """Load the weights of the prelude's helpers into helpers with the same names."""
        for name, helper in helpers.items():
            prefix = f"{name}."
            state = {
                key.removeprefix(prefix): value
                for key, value in prelude_state.items()
                if key.startswith(prefix)
            }
            if state:
                helper.load_state_dict(state)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """Helpers that are saved with the finished student."""
        return nn.ModuleDict({name: helpers[name] for name in self.released})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True until `calibrate` has set every `Calibrated` helper."""
        return any(
            isinstance(module, Calibrated) and not bool(module.known)
            for module in helpers.modules()
        )

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set `Calibrated` helpers from the teacher's outputs for batches of training samples.

        Each pass over `teacher` gives the same outputs, which need not fit in memory together.
        """

    def calibration_reads(self) -> str | None:
        """The settings that `calibrate` reads, where they and the teacher's outputs determine all
        that it sets; None where more does.

        What it sets is then computed once, for all students of a cache. It must be small.
        """
        return None

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """Logits [B, C] for the labels' cross entropy and for predicted probabilities.

        `teacher` is None at inference.
        """
        return precise(student.logits)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, C] of student and teacher between which the greedy route search measures.

        By default the student's scores and the teacher's logits; a method whose scores are
        normalised logits normalises the teacher's, too.
        """
        return self.scores(student, None, helpers), precise(teacher.logits)

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """Function from the network's logits to `scores`, for users without raykd.

        Its `kind` and its constants; {} is the identity. None where the scores are no function of
        the logits.
        """
        return {}

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Weighted scalar losses, keyed by the spot that each compares.

        The teacher's outputs carry no autograd graph, unless the method trains the teacher; they
        are None for a teacherless method.
        A loss is a mean over the rows of its spot and reads no other spot (unless `joint`), so that
        spot-adaptive distillation can pass a subset of rows; a method with several spots reads no
        rows of `batch`, either. With a `Shared` helper it must also work on no rows at all.
        """
        raise NotImplementedError


class LabelMethod(Method):
    """No loss besides the labels' cross entropy, which the learner computes. Abstract."""

    def needs(self) -> Signal:
        """No signals of a teacher."""
        return Signal(0)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """No losses."""
        return NOTHING


class LogitMethod(Method):
    """weight * one loss that compares logits, at the spot "logits". Abstract."""

    weight: Schedule
    """Factor of the method's loss: a number, [[first epoch, value], ...], or a ramp."""

    @abstractmethod
    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Loss, a scalar, of logits [B, C] in full precision."""

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted loss, at the spot "logits"."""
        with full_precision(student.logits):
            loss = self.logit_loss(precise(student.logits), precise(teacher.logits), batch)
            return {"logits": value_at(self.weight, batch.epoch) * loss}


class SpotMethod(Method):
    """weight * one loss that compares embeddings, or the maps of one stage. Abstract.

    The embeddings, unless a subclass names a stage in `spots`.
    """

    weight: Schedule
    """Factor of the method's loss: a number, [[first epoch, value], ...], or a ramp."""

    @abstractmethod
    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Loss, a scalar, of embeddings [B, D] or maps [B, K, H, W] in full precision."""

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted loss, at the method's one spot."""
        ((spot, teacher_spot),) = self.spots(student.features, teacher.stages).items()
        maps = self.maps_of_teacher(teacher)
        with full_precision(student.any_tensor):
            loss = self.spot_loss(
                precise(student.embedding if spot == "embedding" else student.features[spot]),
                precise(teacher.embedding if teacher_spot == "embedding" else maps[teacher_spot]),
                helpers,
            )
            return {spot: value_at(self.weight, batch.epoch) * loss}


def looks_for(target: Target) -> Looks:
    """Looks of a method that compares with one view of the teacher's, or with the mean of all."""
    return Looks() if target == "view" else Looks(teacher=("view_mean",))


def at_target(teacher: Outputs, target: Target) -> Outputs:
    """The teacher's outputs for the view that the student sees, or their mean over all views."""
    return teacher if target == "view" else teacher.look("view_mean")


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast is off on the tensor's device: losses are computed in float32."""
    device = tensor.device.type
    # Entering a context where autocast is off already would cost a tenth of a small loss.
    if not torch.is_autocast_enabled(device):
        return _AUTOCAST_UNCHANGED
    return torch.autocast(device, enabled=False)


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def without_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [B, C] in which the label's class (int64 [B]) has probability 0 and no gradient.

    Selecting the other columns by a mask takes three times as long, and synchronises a GPU.
    """
    return logits.scatter(1, labels[:, None], MASKED_LOGIT)


def logsumexp_without(logits: Tensor, kept: Tensor) -> Tensor:
    """Logsumexp [B] of the logits [B, C] of all classes but `kept` (int64 [B, k])."""
    return logits.scatter(1, kept, MASKED_LOGIT).logsumexp(1)


def match_classes(student: Outputs, teacher: Outputs) -> Outputs:
    """Student outputs whose logits have the columns of the teacher's.

    Where the teacher's keep k classes and merge the others, the student's logits [B, C] become
    [B, k + 1]: those of the same k classes, and the logsumexp of all others.
    """
    if teacher.kept is None:
        return student
    with full_precision(student.logits):
        logits = precise(student.logits)
        merged = logsumexp_without(logits, teacher.kept)[:, None]
        return student.replace(logits=torch.cat([logits.gather(1, teacher.kept), merged], dim=1))


def standardise(logits: Tensor) -> Tensor:
    """Z(logits): each row of [B, C] shifted to mean 0 and scaled to unbiased std 1.

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
    """`soft_cross_entropy` with log-probabilities [B, C] at `temperature` as the target."""
    log_student = F.log_softmax(student / temperature, dim=1)
    mean = F.kl_div(log_student, finite(target), reduction="batchmean", log_target=True)
    return mean * temperature**2


def finite(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities with a finite log 0, so that a class of probability 0 adds 0, not NaN."""
    return log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)
