"""Spot-adaptive distillation: a policy chooses for each sample the spots at which to distil.

Shapes: B batch, C classes, R decisions.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.at import AT
from raykd.methods.base import Coverage, Looks, Method, Schedule, Stages, canonical, precise
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.feature_maps import sum_by_spot
from raykd.methods.kd import KD
from raykd.methods.row_subsets import losses_on_rows
from raykd.methods.sakd_policy import Router, Selection
from raykd.methods.wrapper import Wrapper

if TYPE_CHECKING:
    AnyBase = Method  # the union of all other methods, set in `raykd.methods`

PAPER = ("fitnet", "at", "sp", "cc", "vid", "relational_kd", "pkt", "ft", "nst", "crd")  # bases
GAMMA = {"at": 2.0, "relational_kd": 2.0, "vid": 2.0}  # by base, on CIFAR-100; otherwise 1
_MAPS = Signal.FEATURES | Signal.PREACTIVATIONS | Signal.MAP


class SAKD(Wrapper):
    """The base's losses on the samples that a policy chooses at each spot, and KD at the logits.

    Song et al. 2022, arXiv 2205.02399, as in the official code (the paper's equations were not
    available): sum over spots r of (n_r / B) * base loss of the n_r rows chosen there + kd_weight *
    (n / B) * KD of the n rows chosen at the logits, for every base, + the labels' cross entropy.
    The choices are a hard Gumbel softmax of a linear policy on both embeddings. The policy learns
    from the routing network: both networks, joined by adapters at the spots, where a sample
    continues from the teacher's features if it is chosen, otherwise from the student's. Its cross
    entropy ("route") trains only policy and adapters, at `rate` times the run's learning rate.

    - `mode`: "adaptive"; or, for comparison, "always" (every sample at every spot: base + KD),
      "random" (a coin for each), "reverse" (the spots that the policy does not choose), "both": the
      teacher, in training mode, also learns, from the labels and all losses, as the official code
      intends, whose optimisers lack its weights. Metrics compare with the teacher before training.
    - `gamma` None: 2 for at, relational_kd and vid, otherwise 1; set 2 for Tiny-ImageNet.
    - `homogeneous`: the policy initially chooses all samples at all spots. None: True where all
      stages and the embedding have equal shapes, which agrees with the official configurations.
    - `adapter_relu` false omits the ReLU at the end of the adapters of maps: our addition, for
      networks whose stages end in signed sums.
    - `as_released` follows the official scripts in two places. In modes "adaptive" and "reverse"
      over `cc`, they detach the output of the teacher's linear map, which therefore keeps its
      initial weights; the scripts for "always", "random" and "both" train it, as this class does
      otherwise in all modes. In mode "random", a base with several spots has no coin for the
      logits, which share the last spot's, and the labels' cross entropy has the weight `gamma`.

    A base whose losses read several spots at once (reviewkd, irg) has one decision for all of them.
    Where the base reads only embeddings or logits, the teacher may be a cache; over a base with
    `source: cache` in the modes "always" and "random", too. In a file, a base
    `fitnet` without a weight gets the official weight 1. The official code runs FitNet's regressor
    and FT's translator on all rows and selects afterwards; here they see only the chosen rows. KD
    is added for every base: a base `kd` distils the chosen samples' logits twice.
    """

    title: ClassVar[str] = "Song et al. 2022, arXiv 2205.02399"
    cost: ClassVar[str] = "its base's, and another pass of both networks"
    name: Annotated[Literal["sakd", "spot_adaptive_kd"], canonical("sakd")] = "sakd"
    base: "AnyBase" = AT()
    """Method whose losses are applied where the policy chooses, by name or with settings."""
    mode: Literal["adaptive", "always", "random", "reverse", "both"] = "adaptive"
    """Choice of samples at each spot: by the policy, or one of four forms to compare with."""
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of KD at the logits."""
    kd_weight: Schedule = 1.0
    """Factor of KD at the logits: a number, [[first epoch, value], ...], or a ramp."""
    gamma: float | None = Field(default=None, gt=0, le=Limits.WEIGHT)
    """Factor gamma of the routing network's loss; null: 1, or 2 for at, relational_kd and vid."""
    gumbel_temperature: float = Field(default=5.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature of the Gumbel softmax by which the policy draws."""
    homogeneous: bool | None = None
    """Begin with every sample at every spot; null: where all shapes are equal."""
    adapter_relu: bool = True
    """End the adapters of maps with a ReLU."""
    rate: float = Field(default=0.5, gt=0, le=Limits.WEIGHT)
    """Learning rate of policy and adapters, as a multiple of the run's."""
    weight_decay: float = Field(default=1e-3, ge=0, le=1000)
    """Weight decay of policy and adapters."""
    as_released: bool = False
    """Follow the official scripts in two places; see the description of the method."""

    @model_validator(mode="after")
    def _check(self) -> "SAKD":
        for part in self._leaves():
            if not part.needs():
                reason = "reads nothing of the teacher in the student's own training"
            elif part.trains != "student":
                reason = (
                    "leaves the student's classifier untrained, in which the routing network ends"
                )
            elif part.derived() and self._routes():
                reason = (
                    "reads derived columns (source: cache), and the routing network runs the "
                    "teacher's stages, as modes always and random do not"
                )
            elif Signal.PIXELS in part.needs():
                reason = "differentiates all samples together, and cannot be given some of them"
            else:
                continue
            raise ValueError(f"base: {part.name!r} {reason}; choose another method")
        return self

    def parts(self) -> Mapping[str, Method]:
        """The base."""
        return {"base": self.base}

    @property
    def label(self) -> str:
        """Name with the base's label, as in "sakd(at)"."""
        mode = "" if self.mode == "adaptive" else f", {self.mode}"
        return f"{self.name}({self.base.label}{mode})"

    def needs(self) -> Signal:
        """The base's signals and logits; with a policy, embeddings and the networks, too."""
        return self._with_routing(super().needs())

    def student_needs(self) -> Signal:
        """The base's signals of the student, and those that `needs` adds."""
        return self._with_routing(super().student_needs())

    def _with_routing(self, needs: Signal) -> Signal:
        """A base's signals, and those that KD and the policy read of the same network."""
        needs |= Signal.LOGITS
        needs |= Signal.FEATURES if needs & _MAPS else Signal(0)
        if self._routes():
            needs |= Signal.EMBEDDING
            needs |= Signal.LIVE if Signal.FEATURES in needs else Signal.CLASSIFIER
        return needs | Signal.LIVE if self.trains_teacher() else needs

    def accepts(self, coverage: Coverage) -> bool:
        """True where base and KD accept it; a routing network needs all classes."""
        kd = KD(temperature=self.temperature)
        routed = coverage.classes == "all" or not self._routes()
        return routed and super().accepts(coverage) and kd.accepts(coverage)

    def looks(self) -> Looks:
        """The given look, which KD and the policy compare, then the base's."""
        given, looks = Looks(), super().looks()
        return Looks(
            tuple(dict.fromkeys((*given.student, *looks.student))),
            tuple(dict.fromkeys((*given.teacher, *looks.teacher))),
        )

    def reads_labels(self) -> bool:
        """True: the policy learns from them, and counts the choices of each class."""
        return True

    def weight_of_labels(self) -> Schedule:
        """1, or `gamma` in mode "random" as released."""
        released = self.as_released and self.mode == "random"
        return self._gamma() if released else super().weight_of_labels()

    def trains_teacher(self) -> bool:
        """True in mode "both"."""
        return self.mode == "both"

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The base's spots, and the logits."""
        return {**self.base.spots(student, teacher), "logits": "logits"}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The base's helpers, the counts of chosen samples, and policy and adapters."""
        helpers = nn.ModuleDict({"base": self.base.helpers(student, teacher, targets)})
        if self.mode == "always":
            return helpers
        if self.as_released and self._routes() and not self.trains_teacher():
            for part, part_helpers in self._leaves_with(helpers):
                if isinstance(part, CC) and "teacher" in part_helpers:
                    part_helpers["teacher"].requires_grad_(False)
        spots = dict(self.spots(student.features, teacher.features))
        columns, joint = self._columns(spots), self._joint()
        names = [self.base.label, "logits"] if joint else [*spots]
        helpers["selection"] = Selection(names[: max(columns.values()) + 1], student.classes)
        if self._routes():
            del spots["logits"]
            equal = bool(student.features) and student.sequential and student == teacher
            router = Router(
                student,
                teacher,
                spots,
                columns,
                choose_all=equal if self.homogeneous is None else self.homogeneous,
                relu=self.adapter_relu,
                rerun_teacher=self.trains_teacher(),
            )
            router.rate, router.weight_decay = self.rate, self.weight_decay
            helpers["routing"] = router
        return helpers

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The base's losses, KD at "logits", and the routing network's loss at "route".

        A trained teacher adds its cross entropy with the labels at "teacher".
        """
        outputs = student, teacher, batch
        parts = self._leaves_with(helpers)
        kd, no_helpers = KD(temperature=self.temperature, weight=self.kd_weight), nn.ModuleDict()
        if self.mode == "always":
            every = (*parts, (kd, no_helpers))
            return sum_by_spot(part.losses(*outputs, modules) for part, modules in every)

        # Rows that are chosen at each spot. The stable sort moves them to the front, so that a GPU
        # is waited for only once, for their numbers.
        gates, chosen = self._decisions(student, teacher, batch, helpers)
        order = (~chosen).long().argsort(dim=0, stable=True)
        by_column = [order[:count, i] for i, count in enumerate(chosen.sum(0).tolist())]
        columns = self._columns(self.spots(student.features, teacher.stages))
        rows = {spot: by_column[column] for spot, column in columns.items()}
        base_rows = dict.fromkeys(rows, by_column[0]) if self._joint() else rows

        # Losses of the student, of the routing network, of a trained teacher.
        losses = [losses_on_rows(part, base_rows, *outputs, modules) for part, modules in parts]
        losses = sum_by_spot((*losses, losses_on_rows(kd, rows, *outputs, no_helpers)))
        if gates is not None:
            losses["route"] = _router(helpers).loss(student, teacher, batch, gates, self._gamma())
        if self.trains_teacher():
            losses["teacher"] = F.cross_entropy(precise(teacher.logits), batch.targets)
        return losses

    def _decisions(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> tuple[Tensor | None, Tensor]:
        """Gates [B, R] of the policy, None in mode "random", and chosen samples, bool [B, R]."""
        selection = helpers["selection"]
        assert isinstance(selection, Selection)
        gates, count = None, len(selection.names)
        if self._routes():
            gates = _router(helpers).gates(
                student.embedding,
                teacher.embedding,
                selection.uniform(batch, 2 * count),
                self.gumbel_temperature,
            )
            chosen = gates < 0.5 if self.mode == "reverse" else gates > 0.5
        else:
            chosen = selection.uniform(batch, count) < 0.5
        selection.add(chosen, batch.labels)
        return gates, chosen

    def _leaves(self) -> tuple[Method, ...]:
        """The base, or the parts of a sum: methods whose rows are chosen."""
        return self.base.combine if isinstance(self.base, Combine) else (self.base,)

    def _leaves_with(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """The base, or the parts of a sum, each with its helpers."""
        ((base, base_helpers),) = self.with_helpers(helpers)
        if isinstance(base, Combine):
            return base.with_helpers(base_helpers)
        return [(base, base_helpers)]

    def _gamma(self) -> float:
        """Factor that scales the routing loss up or down."""
        return GAMMA.get(self.base.name, 1.0) if self.gamma is None else self.gamma

    def _joint(self) -> bool:
        """True where one decision covers all of the base's spots."""
        return any(part.joint for part in self._leaves())

    def _routes(self) -> bool:
        """True where a policy decides, which the routing network trains."""
        return self.mode not in ("always", "random")

    def _columns(self, spots: Iterable[str]) -> dict[str, int]:
        """Spot -> column of its decision."""
        base_spots = (spot for spot in spots if spot != "logits")
        columns = {spot: 0 if self._joint() else i for i, spot in enumerate(base_spots)}
        count = len(set(columns.values()))
        shares_last = self.as_released and self.mode == "random" and count > 1
        return columns | {"logits": count - 1 if shares_last else count}


def _router(helpers: nn.ModuleDict) -> Router:
    """Policy and adapters among the helpers."""
    return cast(Router, helpers["routing"])
