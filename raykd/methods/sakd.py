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
from raykd.methods.base import Coverage, Looks, Method, Prelude, Schedule, canonical, precise
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.feature_maps import added
from raykd.methods.kd import KD
from raykd.methods.row_subsets import chosen_losses
from raykd.methods.sakd_policy import Router, Selection

if TYPE_CHECKING:
    AnyBase = Method  # the union of all other methods, which the table fills in

PAPER = ("fitnet", "at", "sp", "cc", "vid", "relational_kd", "pkt", "ft", "nst", "crd")  # bases
GAMMA = {"at": 2.0, "relational_kd": 2.0, "vid": 2.0}  # by base, on CIFAR-100; 1 for the others
_MAPS = Signal.FEATURES | Signal.PREACTIVATIONS


class SAKD(Method):
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
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)  # of KD
    kd_weight: Schedule = 1.0
    gamma: float | None = Field(default=None, gt=0, le=Limits.WEIGHT)  # of the routing loss
    gumbel_temperature: float = Field(default=5.0, gt=0, le=Limits.TEMPERATURE)
    homogeneous: bool | None = None
    adapter_relu: bool = True
    rate: float = Field(
        default=0.5, gt=0, le=Limits.WEIGHT
    )  # of policy and adapters, times the run's
    weight_decay: float = Field(default=1e-3, ge=0, le=1000)  # of policy and adapters
    as_released: bool = False

    @model_validator(mode="after")
    def _check(self) -> "SAKD":
        for part in self._parts():
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

    @property
    def label(self) -> str:
        """Its base, as in "sakd(at)"."""
        mode = "" if self.mode == "adaptive" else f", {self.mode}"
        return f"{self.name}({self.base.label}{mode})"

    def needs(self) -> Signal:
        """What the base reads, both logits, and for the policy both networks."""
        needs = self.base.needs() | Signal.LOGITS
        needs |= Signal.FEATURES if needs & _MAPS else Signal(0)
        if self._routes():
            needs |= Signal.EMBEDDING
            needs |= Signal.LIVE if Signal.FEATURES in needs else Signal.CLASSIFIER
        return needs | Signal.LIVE if self.trains_teacher() else needs

    def accepts(self, coverage: Coverage) -> bool:
        """What base and KD do; a routing network answers with all of the teacher's logits."""
        kd = KD(temperature=self.temperature)
        return all(m.accepts(coverage) for m in (self.base, kd)) and (
            coverage.classes == "all" or not self._routes()
        )

    def looks(self) -> Looks:
        """As the base, and the given look, which KD and the policy compare."""
        looks, given = self.base.looks(), Looks()
        student = dict.fromkeys((*given.student, *looks.student))
        return Looks(tuple(student), tuple(dict.fromkeys((*given.teacher, *looks.teacher))))

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """As the base."""
        return self.base.mixing()

    def prelude(self) -> Prelude | None:
        """The base's."""
        return self.base.prelude()

    def weight_of_labels(self) -> Schedule:
        """1, or `gamma` in mode "random" as released."""
        released = self.as_released and self.mode == "random"
        return self._gamma() if released else super().weight_of_labels()

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """As the base."""
        return self.base.comparable(student, teacher, _of_base(helpers))

    def remembers(self) -> bool:
        """As the base."""
        return self.base.remembers()

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
            for part, own in self._parts_with(_of_base(helpers)):
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

    def adopt(self, helpers: nn.ModuleDict, found: Mapping[str, Tensor]) -> None:
        """Hand the prelude's helpers to the base."""
        self.base.adopt(_of_base(helpers), found)

    def releases(self, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """What the base needs to be used; the policy is for training only."""
        kept = self.base.releases(_of_base(helpers))
        return nn.ModuleDict({"base": kept} if len(kept) else {})

    def calibrates(self, helpers: nn.ModuleDict) -> bool:
        """Whether the base does."""
        return self.base.calibrates(_of_base(helpers))

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Let the base look at the teacher's outputs."""
        self.base.calibrate(_of_base(helpers), teacher)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The base's."""
        return self.base.scores(student, teacher, _of_base(helpers))

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """The base's."""
        return self.base.rescaling(_of_base(helpers))

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The base's, KD at "logits", and the routing network's "route".

        Where the teacher is trained, "teacher" is its cross entropy with the labels.
        """
        parts, both = self._parts_with(_of_base(helpers)), (student, teacher, batch)
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

    def _parts(self) -> tuple[Method, ...]:
        """The methods whose losses are chosen."""
        return self.base.combine if isinstance(self.base, Combine) else (self.base,)

    def _parts_with(self, helpers: nn.ModuleDict) -> list[tuple[Method, nn.ModuleDict]]:
        """The methods whose losses are chosen, each with its own of the base's helpers."""
        if isinstance(self.base, Combine):
            return self.base.parts(helpers)
        return [(self.base, helpers)]

    def _gamma(self) -> float:
        """The factor that switches the routing loss."""
        return GAMMA.get(self.base.name, 1.0) if self.gamma is None else self.gamma

    def _joint(self) -> bool:
        """Whether one decision is for all of the base's spots."""
        return any(part.joint for part in self._parts())

    def _routes(self) -> bool:
        """Whether there is a policy."""
        return self.mode not in ("always", "random")

    def _columns(self, spots: Iterable[str]) -> dict[str, int]:
        """The number of the decision that each spot follows."""
        between = (spot for spot in spots if spot != "logits")
        numbers = {spot: 0 if self._joint() else i for i, spot in enumerate(between)}
        count = len(set(numbers.values()))
        follows = self.as_released and self.mode == "random" and count > 1
        return numbers | {"logits": count - 1 if follows else count}


def _of_base(helpers: nn.ModuleDict) -> nn.ModuleDict:
    """The base's own helpers."""
    return cast(nn.ModuleDict, helpers["base"])


def _router(helpers: nn.ModuleDict) -> Router:
    """The routing network's own modules among the helpers."""
    return cast(Router, helpers["routing"])
