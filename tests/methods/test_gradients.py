"""Gradients of the losses of logits and embeddings: right in float64, finite at the extremes."""

import torch
from torch import Tensor

from raykd.core.types import Batch, Look, Outputs, Shapes
from raykd.methods.ada_distill import AdaDistill
from raykd.methods.angular import Angular
from raykd.methods.cc import CC
from raykd.methods.cosine_kd import CosineKD
from raykd.methods.ctkd import CTKD
from raykd.methods.dist import DIST
from raykd.methods.dkd import DKD
from raykd.methods.embed_distill import EmbedDistill
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.hard_kd import HardKD
from raykd.methods.kd import KD
from raykd.methods.logit_standardisation import LogitStandardisation
from raykd.methods.mimic import MimicEmbedding, MimicLogits
from raykd.methods.mlkd import MLKD
from raykd.methods.nkd import NKD
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.sample_contrastive_kd import SampleContrastiveKD
from raykd.methods.skd import SKD
from raykd.methods.stkd import STKD
from raykd.methods.teacher_free import TeacherFree
from tests.each import each
from tests.small import golden_embeddings, golden_logits

LOGITS, THEIR_LOGITS, TARGETS = golden_logits()
EMBEDDING, THEIR_EMBEDDING = golden_embeddings()
LOOKS: tuple[Look, ...] = ("clean", "partner", "strong")
METHODS = [
    KD(),
    DKD(),
    NKD(),
    DIST(),
    LogitStandardisation(),
    CTKD(),
    MLKD(),
    MLKD(as_released=True, temperatures=(1.0, 4.0)),
    CosineKD(temperature=1.0, weighted=False),
    SampleContrastiveKD(),
    STKD(),
    STKD(teacher="mixed_output", incorrect_only=0.5, clean_kd=1.0),
    HardKD(),
    MimicLogits(),
    MimicEmbedding(),
    RelationalKD(),
    PKT(weight=100.0),
    CC(weight=1.0, width=4),
    CC(form="gaussian"),
    TeacherFree(),
    MimicEmbedding(normalise=True),
    Angular(power=2),
    EmbedDistill(score_weight=1.0),
    EmbedDistill(score_weight=1.0, items="student", distance="cosine"),
    *(FeatureDistillation(distance=name) for name in ("balanced", "angle", "tangent")),
    FeatureDistillation(distance="queue", queue="table", size=4),
    AdaDistill(),
]
# Their temperatures or scales come from the student's logits, and have no gradient.
DETACHED = [CosineKD(low=1.0), SKD(radius=1.0), SKD(variant="l2", radius=1.0)]


def helpers_of(method):
    torch.manual_seed(0)
    helpers = method.helpers(Shapes(10, 6, {}), Shapes(10, 6, {})).eval()
    if method.needs_calibration(helpers):
        method.calibrate(helpers, [Outputs(embedding=THEIR_EMBEDDING.float())])
    return helpers


def losses_of(method, helpers, mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]):
    """The losses of logits and embeddings, which are those of every look."""
    rows, weights = torch.arange(4), torch.tensor([0.9, 0.5, 0.3, 0.7]).to(mine[0].dtype)
    looks = {look: Batch(torch.empty(0), TARGETS, rows, 0, 20) for look in LOOKS}
    sample = Batch(torch.empty(0), TARGETS, rows, 0, 20, looks, weights)
    student, teacher = (
        Outputs(logits, embedding=embedding).with_looks(
            dict.fromkeys(LOOKS, Outputs(logits, embedding=embedding))
        )
        for logits, embedding in (mine, theirs)
    )
    return tuple(method.losses(student, teacher, sample, helpers).values())


@each("method", METHODS, ids=repr)
def test_the_gradient_is_that_of_the_loss(method):
    helpers = helpers_of(method).double()
    theirs = THEIR_LOGITS, THEIR_EMBEDDING
    mine = [x.clone().requires_grad_() for x in (LOGITS, EMBEDDING)]
    assert torch.autograd.gradcheck(lambda *x: losses_of(method, helpers, x, theirs), mine)


@each("method", [*METHODS, *DETACHED], ids=repr)
def test_extreme_outputs_in_float32_give_finite_losses_and_gradients(method):
    sure = torch.full((4, 10), -80.0).scatter_(1, TARGETS[:, None], 80.0)
    embedding, theirs = EMBEDDING.float(), THEIR_EMBEDDING.float()
    helpers = helpers_of(method)
    for logits, answer in ((sure, -sure), (sure, sure), (torch.zeros(4, 10), -sure)):
        for vectors in (torch.zeros(4, 6), 1e4 * embedding, embedding.sign()):
            mine = [x.clone().requires_grad_() for x in (logits, vectors)]
            losses = losses_of(method, helpers, (mine[0], mine[1]), (answer, theirs))
            total = torch.stack(losses).sum()
            learned = [*mine, *helpers.parameters()]
            gradients = torch.autograd.grad(total, learned, allow_unused=True)
            assert bool(total.isfinite())
            assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
