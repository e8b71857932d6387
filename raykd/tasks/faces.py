"""Faces: embeddings that tell people apart whom no image of the training set shows.

Shapes: B batch, C people of the training images, D embedding width, N, M images of a probe.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Signal
from raykd.data.sources import PAIRS
from raykd.methods import margins
from raykd.methods.base import full_precision, precise
from raykd.methods.margins import Beyond, Gradient, Head
from raykd.models.cosine_classifier import CosineClassifier, with_cosine_classifier
from raykd.models.staged import Staged
from raykd.tasks import rankings, verification
from raykd.tasks.base import Embedded, LabelledSet
from raykd.tasks.classification import LabelledTask
from raykd.tasks.sampled_classes import sampled_classes

_MOVES = 0.01  # share of a batch in AdaFace's running moments of the norms
_Count = Annotated[int, Field(ge=1, le=Limits.ROWS)]
_Rate = Annotated[float, Field(gt=0, lt=1)]
_Factor = Annotated[float, Field(ge=1, le=2)]  # beyond both limits the fallback may rise with an
_Part = Annotated[float, Field(ge=0, le=1.5)]  # angle; in radians, or a cosine
COMBINED = (1.0, 0.5, 0.0)  # insightface's
_MARGINAL = ("arcface", "cosface", "adaface")  # heads with one margin
_ANGULAR = ("arcface", "combined", "magface")  # heads that add to the angle
_OF_NORMS = ("sphereface", "adaface", "magface")  # heads that read the norms of embeddings


class FaceSet(LabelledSet):
    """Images of people who are not in the training set, in a folder for each; all of them judge.

    With `data: {name: pairs}` the pairs are those of a list, as LFW's pairs.txt.
    """

    folds: int = Field(default=verification.FOLDS, ge=2, le=Limits.WIDTH)
    """Parts of the people, or of a list; the threshold for the pairs of one comes from the others.
    """
    pairs: int = Field(default=300, ge=1, le=Limits.WIDTH)
    """Pairs of one person in a fold, and of two, at most; LFW has 300. A list has its own."""
    rates: tuple[_Rate, ...] = (0.01, 0.001)
    """False accept rates at which the true accept rate is measured, over all pairs or the list's.
    """
    flip: bool = True
    """Add the embedding of the mirrored image to that of the image."""
    distractors: tuple[_Count, ...] | None = None
    """Numbers of distractors among which images of one person are to find each other; null: none.

    They are the set's training images, whoever is on them, as those of a folder `distractors`
    beside `probes`; left out, powers of 10 up to all of that folder's.
    """

    @model_validator(mode="after")
    def _check_distractors(self) -> Self:
        if self.distractors is None:
            return self
        if self.is_listed:
            raise ValueError("distractors: a list of pairs has none; leave them out")
        if not self.distractors or len({*self.distractors}) < len(self.distractors):
            raise ValueError(
                f"distractors: expected different numbers, got {list(self.distractors)}; leave "
                "them out, or name one"
            )
        return self

    def mirrored(self) -> bool:
        """True where the mirrored image counts, too."""
        return self.flip

    @property
    def is_listed(self) -> bool:
        """True where the pairs are those of a list."""
        return self.data.name == PAIRS

    def judging(self, train: Embedded, test: Embedded) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] and labels of the images that judge: all but distractors."""
        parts = (train, test) if self.distractors is None else (test,)
        return torch.cat([x.student for x in parts]), torch.cat([x.labels for x in parts])

    def listed(self, first: Tensor, second: Tensor) -> verification.Pairs:
        """The list's pairs, by the labels int64 [P] of their first images and of their second."""
        return verification.listed_pairs(first, second, self.folds)


class Faces(LabelledTask):
    """Recognition of faces in an open set: people of the training images teach, others are told
    apart.

    The network's last layer becomes a cosine classifier, whose logits are `scale` * cosine, and a
    margin makes the label's harder; the label loss is the cross entropy of that. What is released
    answers with embeddings. Images are aligned faces, in a folder for each person.

    `top1` is that of test images among the people of the training set. With a `probe`, whose people
    are others: `verification` is the accuracy over folds of pairs with one person or two, with its
    deviation over folds; `tar_at_R` the share of all pairs of one person that is accepted where a
    rate R of pairs of two is, if there are 1 / R of them; `rank_1` that of images whose nearest
    other one is of the same person; and `rank_1_among_N` that of ordered pairs of one person in
    which the first finds the second among N distractors.

    The margins' gradients are true ones by default; `gradient: identity` is that of insightface's
    ArcFace. With `partial` below 1 a step computes the logits of the batch's people and of others
    that it draws, up to that share of all (An et al. 2022, arXiv 2203.15565): fewer logits to hold,
    in a loss that is exact at 1. The optimiser's momentum and decay act on all people's directions.
    """

    embeds: ClassVar[bool] = True
    keeps_logits: ClassVar[bool] = False

    name: Literal["faces"] = "faces"
    head: Head = "arcface"
    """Form of the margin; normface has none."""
    scale: float = Field(default=64.0, gt=0, le=Limits.WEIGHT)
    """Factor s of the cosines; sphereface has each embedding's norm in its place."""
    margin: float | None = Field(default=None, ge=0, le=Limits.WEIGHT)
    """Margin m of arcface (0.5), cosface (0.4) and adaface (0.4); null: that in brackets."""
    combined: tuple[_Factor, _Part, _Part] = COMBINED
    """[m1, m2, m3] of head combined: cos(m1 t + m2) - m3 of the angle t with the label."""
    beyond: Beyond = "fallback"
    """Value of arcface, combined and magface where the angle with its margin is above pi."""
    gradient: Gradient = "through"
    """Gradient of arcface, combined and magface: the true one, or 1 in the cosine."""
    partial: float = Field(default=1.0, gt=0, le=1)
    """Share of the people whose logits a step computes, its own among them (Partial FC)."""
    probe: FaceSet | None = None
    """People that the training images do not show; null: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.margin is not None and self.head not in _MARGINAL:
            raise ValueError(f"margin: head {self.head} has none; it is of {', '.join(_MARGINAL)}")
        if self.head != "combined" and self.combined != COMBINED:
            raise ValueError(f"combined: it is of head combined, and the head is {self.head}")
        if self.head == "arcface" and self._margin() > math.pi:
            raise ValueError(f"margin: expected an angle up to pi, got {self.margin:g}")
        for field, plain in (("beyond", "fallback"), ("gradient", "through")):
            if self.head not in _ANGULAR and getattr(self, field) != plain:
                heads = ", ".join(_ANGULAR)
                raise ValueError(f"{field}: head {self.head} has none; it is of {heads}")
        return self

    @property
    def headline(self) -> str:
        """Accuracy of verification; without a probe, top-1 among the training set's people."""
        return "top1" if self.probe is None else "verification"

    def learns_from(self) -> Signal:
        """The embeddings, whose norms some heads read, or which have no logits yet."""
        read = self.head in _OF_NORMS or self.partial < 1
        return Signal.EMBEDDING if read else Signal(0)

    def adapted(self, network: Staged) -> Staged:
        """The network with a cosine classifier. Raises `ConfigError` where it cannot have one."""
        return with_cosine_classifier(network, self.scale, sampled=self.partial < 1)

    def student_loss(
        self, student: Outputs, scores: Tensor, batch: Batch, smoothing: float
    ) -> Tensor:
        """Cross entropy of the logits with the margin, and MagFace's regulariser."""
        with full_precision(student.any_tensor):
            logits, labels = self.logits_of(student, batch)
            logits, more = self.with_margin(student, logits, labels)
            return F.cross_entropy(logits, labels, label_smoothing=smoothing) + more

    def logits_of(self, student: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits [B, K] of the people that a step counts, and the labels among them."""
        labels = batch.labels
        if student.has_logits:
            return precise(student.logits), labels
        classifier = student.classifier
        assert isinstance(classifier, CosineClassifier)
        people = len(classifier.weight)
        count = min(people, max(round(self.partial * people), len(labels)))
        counted, labels = sampled_classes(labels, batch.ids, batch.epoch, people, count)
        directions = classifier.weight.index_select(0, counted)
        return classifier.logits(precise(student.embedding), directions), labels

    def with_margin(
        self, student: Outputs, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K] with the margin at the labels, and what is added to the loss."""
        cosine = logits / self.scale
        target, nothing = margins.target_of(cosine, labels), cosine.new_zeros(())
        if self.head == "normface":
            return self.scale * cosine, nothing
        if self.head == "cosface":
            target = target - self._margin()
        elif self.head == "arcface":
            target = margins.angular(target, self._margin(), self.beyond, self.gradient)
        elif self.head == "combined":
            factor, added, less = self.combined
            target = margins.angular(target, added, self.beyond, self.gradient, factor) - less
        if self.head not in _OF_NORMS:
            return self.scale * margins.with_target(cosine, labels, target), nothing
        norms = precise(student.embedding).norm(dim=1)
        if self.head == "magface":
            margin, more = margins.magface_margin(norms)
            target = margins.angular(target, margin, self.beyond, self.gradient)
            logits = self.scale * margins.with_target(cosine, labels, target)
            return logits, margins.MAGFACE_WEIGHT * more
        classifier = student.classifier
        assert isinstance(classifier, CosineClassifier)
        if self.head == "adaface":
            target = self._adaface(target, norms, classifier)
            return self.scale * margins.with_target(cosine, labels, target), nothing
        blend = (1500 / (1 + 0.1 * classifier.steps)).clamp_min(5)
        if classifier.training:
            classifier.steps += 1
        target = margins.sphereface(target, blend)
        return norms[:, None] * margins.with_target(cosine, labels, target), nothing

    def _margin(self) -> float:
        return margins.MARGINS[self.head] if self.margin is None else self.margin

    def _adaface(self, target: Tensor, norms: Tensor, classifier: CosineClassifier) -> Tensor:
        """AdaFace's target; the running moments of the norms take a share of the batch's first."""
        norms = margins.adaface_norms(norms)
        if classifier.training and len(norms) > 1:
            moments = torch.stack([norms.mean(), norms.std()]).to(classifier.moments)
            classifier.moments.lerp_(moments, _MOVES)
        mean, deviation = classifier.moments.to(norms).unbind()
        return margins.adaface(target, norms, mean, deviation, self._margin())

    def check_labels(self, train: Tensor, test: Tensor, *, of_probe: bool) -> None:
        """Raise `ValueError` where the people of a probe, or a list's pairs, are too few."""
        if not of_probe or self.probe is None:
            return
        if self.probe.is_listed:
            self.probe.listed(train, test)
            return
        wanted = self.probe.distractors
        if wanted is not None and max(wanted) > len(train):
            raise ValueError(
                f"distractors: expected at most {len(train)}, the number of the probe's training "
                f"images, got {max(wanted)}"
            )
        labels = test if wanted is not None else torch.cat([train, test])
        verification.draw_pairs(labels, self.probe.folds, self.probe.pairs)

    def judged(
        self, train: Embedded, test: Embedded, names: Sequence[str], kept: Any = None
    ) -> dict[str, float]:
        """Verification and recognition of the probe's people, in percent."""
        probe = self.probe
        assert probe is not None
        faces, labels = probe.judging(train, test)
        if probe.is_listed:
            pairs = probe.listed(train.labels, test.labels)
        else:
            pairs = verification.draw_pairs(labels, probe.folds, probe.pairs)
        unit = F.normalize(faces, dim=1)
        scores = (unit[pairs.first] * unit[pairs.second]).sum(1).cpu()
        folds = verification.fold_accuracy(scores, pairs.same, pairs.fold)
        metrics = {
            "verification": 100 * folds.mean,
            "verification_deviation": 100 * folds.deviation,
        }
        # Over the pairs of a list, or over all pairs.
        if probe.is_listed:
            genuine, impostors = scores[pairs.same], [scores[~pairs.same]]
            count = len(impostors[0])
        else:
            genuine = verification.genuine_scores(faces, labels)
            impostors = verification.impostor_scores(faces, labels)
            count = verification.impostor_count(labels)
        accepted = verification.tar_at_far(genuine, impostors, count, probe.rates)
        metrics |= {
            f"tar_at_{rate:g}": 100 * share for rate, share in accepted.items() if share is not None
        }
        if probe.is_listed:
            return metrics
        nearest = rankings.retrieval(faces, faces, labels, labels, alike=True, ranks=(1,))
        metrics["rank_1"] = 100 * nearest.recall[1]
        if probe.distractors is None:
            return metrics
        among = verification.rank_1_among(faces, labels, train.student, probe.distractors)
        return metrics | {f"rank_1_among_{count}": 100 * share for count, share in among.items()}
