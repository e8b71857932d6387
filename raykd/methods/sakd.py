"""Spot-adaptive distillation: a policy decides, sample by sample, where another method distils.

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
from raykd.methods.base import Coverage, Looks, Method, Schedule, canonical, precise
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.feature_maps import added
from raykd.methods.kd import KD
from raykd.methods.row_subsets import chosen_losses
from raykd.methods.sakd_policy import Router, Selection
from raykd.methods.wrapper import Wrapper

if TYPE_CHECKING:
    AnyBase = Method  # the union of all other methods, which the table fills in

PAPER = ("fitnet", "at", "sp", "cc", "vid", "relational_kd", "pkt", "ft", "nst", "crd")  # bases
GAMMA = {"at": 2.0, "relational_kd": 2.0, "vid": 2.0}  # by base, on CIFAR-100; 1 for the others
_MAPS = Signal.FEATURES | Signal.PREACTIVATIONS


class SAKD(Wrapper):
    """The base's losses on the samples that a policy chooses at each spot, and KD at the logits.

    Song et al. 2022, arXiv 2205.02399, as the official code has it (the paper's equations were not
    seen): sum over spots r of (n_r / B) * base loss of the n_r rows chosen there, + kd_weight * KD
    of those chosen at the logits, whatever the base, + the labels' cross entropy with weight 1. The
    choices are a hard Gumbel softmax of a linear policy on both embeddings. The policy learns from
    the routing network: both networks, joined by adapters at the spots, where each sample goes on
    from the teacher's features where it is taught, otherwise from the student's. Its cross entropy
    ("route") trains policy and adapters alone, at `rate` times the run's rate.

    - `mode`: "adaptive"; or, for comparison, "always" (every sample at every spot: base + KD),
      "random" (a coin for each), "reverse" (where the policy says not to), "both": the teacher
      learns too, in training mode, from the labels and from all losses, as the official code
      intends, whose optimisers lack its weights. Metrics compare with it as it was before.
    - `gamma` None: 2 for at, relational_kd and vid, otherwise 1; set 2 for Tiny-ImageNet.
    - `homogeneous`: the policy begins with the teacher everywhere. None: where all stages and the
      embedding have the same shapes, which gives what the official configurations say.
    - `adapter_relu` false leaves out the ReLU that ends the adapters of maps: a decision taken here
      for networks whose stages end in signed sums.
    - `as_released` computes what the official scripts do in two places where they differ. In modes
      "adaptive" and "reverse" over `cc`, they detach what the teacher's linear map says, so that it
      stays as it was drawn; those for "always", "random" and "both" train it, and so does this
      class in all modes otherwise. In mode "random", a base with several spots has no coin for the
      logits, which follow the last spot's, and the labels' cross entropy has the weight `gamma`.

    A base whose losses read several spots at once (reviewkd, irg) has one decision for all of them.
    Where the base reads embeddings or logits alone, the teacher may be a cache. In a file, a base
    `fitnet` gets the official weight 1 where none is given. The official code runs FitNet's
    regressor and FT's translator on all rows and picks then; here they see the chosen ones alone.
    KD is added whatever the base: a base `kd` distils the chosen samples' logits twice.
    """

    title: ClassVar[str] = "Song et al. 2022, arXiv 2205.02399"
    cost: ClassVar[str] = "its base's, and another pass of both networks"
    name: Annotated[Literal["sakd", "spot_adaptive_kd"], canonical("sakd")] = "sakd"
    base: "AnyBase" = AT()
    mode: Literal["adaptive", "always", "random", "reverse", "both"] = "adaptive"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)  # KD's
    kd_weight: Schedule = 1.0
    gamma: float | None = Field(default=None, gt=0, le=Limits.WEIGHT)  # factor of the routing loss
    gumbel_temperature: float = Field(default=5.0, gt=0, le=Limits.TEMPERATURE)
    homogeneous: bool | None = None
    adapter_relu: bool = True
    # Learning rate of policy and adapters, as a multiple of the run's.
    rate: float = Field(default=0.5, gt=0, le=Limits.WEIGHT)
    weight_decay: float = Field(default=1e-3, ge=0, le=1000)  # policy's and adapters'
    as_released: bool = False

    @model_validator(mode="after")
    def _check(self) -> "SAKD":
        for part in self._leaves():
            if not part.needs():
                why = "reads nothing of the teacher in the student's own training"
            elif part.trains != "student":
                why = "leaves the student's classifier untrained, in which the routing network ends"
            elif Signal.PIXELS in part.needs():
                why = "differentiates all samples together, and cannot be given some of them"
            else:
                continue
            raise ValueError(f"base: {part.name!r} {why}; choose another method")
        return self

    def parts(self) -> Mapping[str, Method]:
        """The base."""
        return {"base": self.base}

    @property
    def label(self) -> str:
        """Its base, as in "sakd(at)"."""
        mode = "" if self.mode == "adaptive" else f", {self.mode}"
        return f"{self.name}({self.base.label}{mode})"

    def needs(self) -> Signal:
        """The base's signals, both logits and, for the policy, both networks."""
        needs = super().needs() | Signal.LOGITS
        needs |= Signal.FEATURES if needs & _MAPS else Signal(0)
        if self._routes():
            needs |= Signal.EMBEDDING
            needs |= Signal.LIVE if Signal.FEATURES in needs else Signal.CLASSIFIER
        return needs | Signal.LIVE if self.trains_teacher() else needs

    def accepts(self, coverage: Coverage) -> bool:
        """True where base and KD accept it; a routing network reads all of the teacher's logits."""
        kd = KD(temperature=self.temperature)
        routed = coverage.classes == "all" or not self._routes()
        return routed and super().accepts(coverage) and kd.accepts(coverage)

    def looks(self) -> Looks:
        """The base's looks after the given one, which KD and the policy compare."""
        given, looks = Looks(), super().looks()
        return Looks(
            tuple(dict.fromkeys((*given.student, *looks.student))),
            tuple(dict.fromkeys((*given.teacher, *looks.teacher))),
        )

    def weight_of_labels(self) -> Schedule:
        """1, or `gamma` in mode "random" as released."""
        released = self.as_released and self.mode == "random"
        return self._gamma() if released else super().weight_of_labels()

    def trains_teacher(self) -> bool:
        """In mode "both"."""
        return self.mode == "both"

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The base's, and the logits."""
        return {**self.base.spots(student, teacher), "logits": "logits"}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The base's, the counts of what is chosen, and the routing network's own modules."""
        helpers = nn.ModuleDict({"base": self.base.helpers(student, teacher, targets)})
        if self.mode == "always":
            return helpers
        if self.as_released and self._routes() and not self.trains_teacher():
            for part, own in self._leaves_with(helpers):
                if isinstance(part, CC) and "teacher" in own:
                    own["teacher"].requires_grad_(False)
        spots = dict(self.spots(student.features, teacher.features))
        columns, joint = self._columns(spots), self._joint()
        names = [self.base.label, "logits"] if joint else [*spots]
        helpers["selection"] = Selection(names[: max(columns.values()) + 1], student.classes)
        if self._routes():
            del spots["logits"]
            alike = bool(student.features) and student.sequential and student == teacher
            sure = alike if self.homogeneous is None else self.homogeneous
            how = {"sure": sure, "relu": self.adapter_relu, "again": self.trains_teacher()}
            router = Router(student, teacher, spots, columns, **how)
            router.rate, router.weight_decay = self.rate, self.weight_decay
            helpers["routing"] = router
        return helpers

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The base's, KD at "logits", and the routing network's "route".

        Where the teacher is trained, "teacher" is its cross entropy with the labels.
        """
        parts, both = self._leaves_with(helpers), (student, teacher, batch)
        kd, none = KD(temperature=self.temperature, weight=self.kd_weight), nn.ModuleDict()
        if self.mode == "always":
            return added(part.losses(*both, own) for part, own in (*parts, (kd, none)))
        gates, chosen = self._decisions(student, teacher, batch, helpers)
        # The chosen rows come first; only their number is waited for, once for all decisions.
        order = (~chosen).long().argsort(dim=0, stable=True)
        picked = [order[:count, i] for i, count in enumerate(chosen.sum(0).tolist())]
        spots = self._columns(self.spots(student.features, teacher.features))
        rows = {spot: picked[column] for spot, column in spots.items()}
        of_base = dict.fromkeys(rows, picked[0]) if self._joint() else rows
        losses = [chosen_losses(part, of_base, *both, own) for part, own in parts]
        losses = added((*losses, chosen_losses(kd, rows, *both, none)))
        if gates is not None:
            losses["route"] = _router(helpers).loss(student, teacher, batch, gates, self._gamma())
        if self.trains_teacher():
            losses["teacher"] = F.cross_entropy(precise(teacher.logits), batch.targets)
        return losses

    def _decisions(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> tuple[Tensor | None, Tensor]:
        """The policy's gates [B, R], where there is a policy, and who is taught: bool [B, R]."""
        selection = helpers["selection"]
        assert isinstance(selection, Selection)
        gates, count = None, len(selection.names)
        noise = selection.uniform(batch, 2 * count if self._routes() else count)
        if self._routes():
            both = student.embedding, teacher.embedding
            gates = _router(helpers).gates(*both, noise, self.gumbel_temperature)
        value = noise if gates is None else gates
        chosen = value < 0.5 if gates is None or self.mode == "reverse" else value > 0.5
        selection.add(chosen, batch.labels)
        return gates, chosen

    def _leaves(self) -> tuple[Method, ...]:
        """The methods whose samples are chosen: the base, or the parts of a sum."""
        return self.base.combine if isinstance(self.base, Combine) else (self.base,)

    def _leaves_with(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """The methods whose samples are chosen, each with its own helpers."""
        ((base, own),) = self.with_helpers(helpers)
        return base.with_helpers(own) if isinstance(base, Combine) else [(base, own)]

    def _gamma(self) -> float:
        """The factor that switches the routing loss."""
        return GAMMA.get(self.base.name, 1.0) if self.gamma is None else self.gamma

    def _joint(self) -> bool:
        """True where one decision covers all of the base's spots."""
        return any(part.joint for part in self._leaves())

    def _routes(self) -> bool:
        """True where a policy decides (and the routing network trains it)."""
        return self.mode not in ("always", "random")

    def _columns(self, spots: Iterable[str]) -> dict[str, int]:
        """The number of the decision that each spot follows."""
        between = (spot for spot in spots if spot != "logits")
        numbers = {spot: 0 if self._joint() else i for i, spot in enumerate(between)}
        count = len(set(numbers.values()))
        follows = self.as_released and self.mode == "random" and count > 1
        return numbers | {"logits": count - 1 if follows else count}


def _router(helpers: nn.ModuleDict) -> Router:
    """The routing network's own modules among the helpers."""
    return cast(Router, helpers["routing"])
