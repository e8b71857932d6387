"""Margins: golden values, gradients, and what happens beyond pi."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods import margins
from raykd.models.cosine_classifier import CosineClassifier
from raykd.tasks import Faces
from tests.each import each
from tests.small import golden_embeddings, golden_logits

EMBEDDINGS = golden_embeddings()[0]
LABELS = golden_logits()[2]
J, D = torch.arange(10.0).double()[:, None], torch.arange(6.0).double()
WEIGHT = (0.35 * J + 0.8 * D + 0.3).cos()


def classifier(scale):
    made = CosineClassifier(6, 10, scale).double().eval()
    made.weight.data.copy_(WEIGHT)
    return made


def loss_of(task, embeddings=EMBEDDINGS, head=None):
    head = head or classifier(task.scale)
    outputs = Outputs(head(embeddings), embedding=embeddings, classifier=head)
    sample = Batch(torch.empty(0), LABELS, torch.arange(4), view=0, epoch=0)
    return task.student_loss(outputs, outputs.logits, sample, 0.0)


@each(
    ("fields", "value"),
    [
        ({"head": "normface"}, 58.72033381),
        ({"head": "arcface"}, 75.34258545),
        ({"head": "arcface", "beyond": "clamp"}, 71.77000011),
        ({"head": "arcface", "beyond": "none"}, 70.96530561),
        ({"head": "arcface", "gradient": "identity"}, 75.34258545),
        ({"head": "arcface", "scale": 30.0}, 35.32203587),
        ({"head": "cosface", "margin": 0.35}, 80.11727532),
        ({"head": "cosface"}, 83.31727531),
        ({"head": "combined"}, 75.34258545),
        ({"head": "combined", "beyond": "clamp"}, 71.77000011),
        ({"head": "combined", "beyond": "none"}, 70.96530561),
        ({"head": "combined", "combined": (1.0, 0.0, 0.35)}, 80.11727532),
    ],
)
def test_margins_have_the_values_of_the_specification(fields, value):
    assert loss_of(Faces(**fields)).item() == pytest.approx(value, rel=1e-7)


@pytest.mark.slow
def test_a_combined_margin_multiplies_adds_and_takes_away():
    cosine = margins.target_of(classifier(1.0)(EMBEDDINGS), LABELS)
    logits = classifier(64.0)(EMBEDDINGS).detach()
    logits[torch.arange(4), LABELS] = 64 * ((1.2 * cosine.acos() + 0.3).cos() - 0.1)
    task = Faces(head="combined", combined=(1.2, 0.3, 0.1), beyond="none")
    assert loss_of(task).item() == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-9)


HEADS = [*margins.MARGINS, "normface", "combined", "magface"]
OF_NORMS = ("sphereface", "adaface", "magface")


def fixed(scale=64.0):
    """A classifier after many steps, with AdaFace's margin of norms between its limits."""
    made = classifier(scale)
    made.moments, made.steps = torch.tensor([1.8, 0.1]).double(), torch.tensor(1e9)
    return made


@each(
    "fields",
    [
        {"head": "arcface", "margin": 0.0},
        {"head": "arcface", "margin": 0.0, "beyond": "clamp"},
        {"head": "cosface", "margin": 0.0},
        {"head": "combined", "combined": (1.0, 0.0, 0.0)},
        {"head": "adaface", "margin": 0.0},
    ],
)
def test_without_a_margin_every_head_is_normface(fields):
    assert loss_of(Faces(**fields)).item() == pytest.approx(58.72033381, rel=1e-9)


def test_losses_rise_with_the_margin():
    for head in ("arcface", "cosface", "adaface"):
        margin_losses = [
            loss_of(Faces(head=head, margin=m), head=fixed()).item() for m in (0.0, 0.2, 0.4, 0.6)
        ]
        assert margin_losses == sorted({*margin_losses}), head


@each("head", HEADS)
def test_lengths_of_directions_never_count_and_those_of_embeddings_for_some_heads(head):
    task, made = Faces(head=head), fixed()
    made.weight.data.mul_(torch.linspace(0.1, 9, 10).double()[:, None])
    plain = loss_of(task, head=fixed())
    torch.testing.assert_close(loss_of(task, head=made), plain)
    rows = torch.tensor([0.5, 3.0, 20.0, 1.5]).double()[:, None]
    longer = loss_of(task, rows * EMBEDDINGS, head=fixed())
    assert torch.allclose(longer, plain) == (head not in OF_NORMS)


def target_at(task, angles, norm):
    """A head's value in place of the cosine, at some angles with the label [n], for one norm."""
    made, count = fixed(), len(angles)
    cosine = torch.stack([angles.cos(), torch.zeros_like(angles)], 1)
    embedding = torch.full((count, 1), norm).double()
    outputs = Outputs(embedding=embedding, classifier=made)
    logits, _ = task.with_margin(outputs, task.scale * cosine, torch.zeros(count).long())
    return logits[:, 0] / (norm if task.head == "sphereface" else task.scale)


@each(
    ("fields", "norms"),
    [
        ({"head": "arcface", "margin": 0.5}, (1.0,)),
        ({"head": "cosface"}, (1.0,)),
        ({"head": "combined", "combined": (1.35, 0.0, 0.0)}, (1.0,)),
        ({"head": "combined", "combined": (1.35, 0.5, 0.1)}, (1.0,)),
        ({"head": "combined", "combined": (2.0, 1.5, 0.0)}, (1.0,)),
        ({"head": "adaface"}, (1.0, 1.8, 3.0)),  # z = -1, 0, 1
        ({"head": "magface"}, (10.0, 60.0, 110.0)),
        ({"head": "sphereface"}, (1.0,)),
    ],
)
def test_no_head_rises_with_the_angle_or_above_its_cosine(fields, norms):
    angles, task = torch.linspace(0, math.pi, 2001).double(), Faces(**fields)
    for norm in norms:
        value = target_at(task, angles, norm)
        assert (value.diff() <= 1e-6).all() and (value <= angles.cos() + 1e-6).all(), norm


@each("head", HEADS)
def test_the_gradient_of_every_head_is_that_of_its_loss(head):
    # The angles with the labels are 1.67, 2.48, 2.96 and 0.16: away from 0, pi and pi - m.
    task, scale = Faces(head=head), 20.0 if head == "magface" else 1.0

    def loss(embeddings, weight):
        made = fixed()
        del made.weight
        made.weight = weight
        return loss_of(task, embeddings, made)

    embeddings, weight = scale * EMBEDDINGS.clone(), WEIGHT.clone().requires_grad_()
    # AdaFace's margin follows the norms without a gradient.
    embeddings.requires_grad_(head != "adaface")
    assert torch.autograd.gradcheck(loss, (embeddings, weight))


def test_adaface_has_the_value_of_the_specification():
    norms = margins.adaface_norms(EMBEDDINGS.norm(dim=1))
    cosine = classifier(1.0)(EMBEDDINGS)
    target = margins.target_of(cosine, LABELS)
    target = margins.adaface(target, norms, norms.mean(), norms.std(), 0.4)
    logits = 64 * margins.with_target(cosine, LABELS, target)
    assert F.cross_entropy(logits, LABELS).item() == pytest.approx(84.20745049, rel=1e-6)


@pytest.mark.slow
def test_adaface_takes_a_hundredth_of_each_batch_into_its_moments():
    head = classifier(64.0).train()
    loss_of(Faces(head="adaface"), head=head)
    norms = EMBEDDINGS.norm(dim=1)
    expected = 0.99 * torch.tensor([20.0, 100.0]).double() + 0.01 * torch.stack(
        [norms.mean(), norms.std()]
    )
    torch.testing.assert_close(head.moments, expected)
    kept = head.moments.clone()
    loss_of(Faces(head="adaface"), head=head.eval())
    assert torch.equal(kept, head.moments)


def test_magface_has_the_values_of_the_specification():
    loss, more = loss_of(Faces(head="magface"), 20 * EMBEDDINGS), 0.03081858129
    assert loss.item() == pytest.approx(76.98008348 + 35 * more, rel=1e-7)


def test_sphereface_has_the_values_of_the_specification():
    cosine = classifier(1.0)(EMBEDDINGS)
    target, norms = margins.target_of(cosine, LABELS), EMBEDDINGS.norm(dim=1)
    for blend, value in ((5.0, 3.682935635), (0.0, 8.678666866)):
        logits = norms[:, None] * margins.with_target(
            cosine, LABELS, margins.sphereface(target, blend)
        )
        assert F.cross_entropy(logits, LABELS).item() == pytest.approx(value, rel=1e-6)
    head = classifier(64.0).train()
    loss_of(Faces(head="sphereface"), head=head)
    assert head.steps.item() == 1
    edge = margins.sphereface(torch.tensor([-1.0]).double(), 0.0)
    assert edge.item() == pytest.approx(-7)  # k is 3 at pi


@pytest.mark.slow
def test_true_gradients_differ_from_the_identity_s_by_a_ratio_of_sines():
    cosine = margins.target_of(classifier(1.0)(EMBEDDINGS), LABELS)[[0, 1, 3]]
    cosine = cosine.detach().requires_grad_()
    for kind in ("through", "identity"):
        (slope,) = torch.autograd.grad(margins.angular(cosine, 0.5, "none", kind).sum(), cosine)
        theta = cosine.detach().acos()
        ratio = (theta + 0.5).sin() / theta.sin() if kind == "through" else torch.ones(3).double()
        torch.testing.assert_close(slope, ratio)
    expected = torch.tensor([0.8288715254, 0.2680597420, 3.854258893]).double()
    theta = cosine.detach().acos()
    torch.testing.assert_close((theta + 0.5).sin() / theta.sin(), expected)


@each(("head", "side"), [(head, side) for head in HEADS for side in (3.0, -3.0)])
def test_gradients_are_finite_where_the_embedding_is_its_class_or_opposite(head, side):
    made, axes = classifier(64.0).float(), torch.eye(6)[:4]
    made.weight.data[LABELS] = axes  # with cosines of exactly 1 and -1
    x = (side * axes).requires_grad_()
    loss = loss_of(Faces(head=head), x, made)
    gradients = torch.autograd.grad(loss, [x, made.weight])
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)


@each(
    "fields, text",
    [
        ({"head": "magface", "margin": 0.4}, "head"),
        ({"combined": (2.0, 0.0, 0.0)}, "head"),
        ({"head": "cosface", "beyond": "clamp"}, "beyond: head cosface has none"),
        ({"margin": 4.0}, "an angle up to pi, got 4"),
    ],
)
def test_margins_of_another_head_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        Faces(**fields)


def test_a_cosine_classifier_has_the_cosines_of_the_specification():
    cosines = classifier(1.0)(EMBEDDINGS)
    assert cosines[0, 1].item() == pytest.approx(-0.1010825183, rel=1e-6)
    assert cosines[3, 0].item() == pytest.approx(0.9872767354, rel=1e-6)
