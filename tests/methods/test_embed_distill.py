"""EmbedDistill: golden values, and what its distances and scores do not depend on."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.embed_distill import EmbedDistill, score_divergence
from tests.each import each
from tests.small import golden_embeddings

MINE, THEIRS = golden_embeddings()
J, D = torch.arange(5.0).double()[:, None], torch.arange(6.0).double()
ITEMS, TEACHER_ITEMS = (0.8 * J + 0.2 * D + 0.4).sin(), (0.6 * J + 0.9 * D + 0.1).cos()


def loss_of(student, teacher, **fields):
    sample = Batch(torch.empty(0), torch.arange(4), torch.arange(4), view=0, epoch=0)
    outputs = Outputs(embedding=student), Outputs(embedding=teacher)
    method = EmbedDistill(**fields)
    return method.losses(*outputs, sample, torch.nn.ModuleDict())["embedding"]


@each(
    ("distance", "value"),
    [("l2", 1.398545145), ("squared", 2.004559027), ("cosine", 0.3170808717)],
)
def test_distances_have_the_values_of_the_specification(distance, value):
    assert loss_of(MINE, THEIRS, distance=distance).item() == pytest.approx(value, rel=1e-8)


def test_scores_have_the_values_of_the_specification():
    student = score_divergence(MINE, ITEMS, THEIRS, TEACHER_ITEMS, 0.05)
    teacher = score_divergence(MINE, TEACHER_ITEMS, THEIRS, TEACHER_ITEMS, 0.05)
    assert student.item() == pytest.approx(17.80319153, rel=1e-8)
    assert teacher.item() == pytest.approx(1.068260148, rel=1e-8)


@pytest.mark.slow
def test_scores_are_the_same_in_a_space_that_is_turned_and_distances_are_not():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    plain = score_divergence(MINE, ITEMS, THEIRS, TEACHER_ITEMS, 0.05)
    turned = score_divergence(MINE @ turn, ITEMS @ turn, THEIRS, TEACHER_ITEMS, 0.05)
    torch.testing.assert_close(plain, turned)
    assert not torch.allclose(loss_of(MINE, THEIRS), loss_of(MINE @ turn, THEIRS))


@pytest.mark.slow
@each("items", ["teacher", "student"])
def test_both_parts_vanish_at_the_teacher_and_add_up_elsewhere(items):
    assert loss_of(THEIRS, THEIRS, score_weight=1.0, items=items) < 1e-5
    both = loss_of(MINE, THEIRS, score_weight=2.0, items=items, weight=3.0)
    rows = THEIRS if items == "teacher" else MINE
    scores = score_divergence(MINE, rows, THEIRS, THEIRS, 0.05)
    torch.testing.assert_close(both, 3 * (loss_of(MINE, THEIRS) + 2 * scores))


@pytest.mark.slow
def test_the_gradient_at_the_teacher_is_finite():
    student = F.pad(THEIRS, (0, 0)).requires_grad_()
    loss_of(student, THEIRS).backward()
    assert student.grad is not None and not student.grad.isnan().any()


@pytest.mark.slow
def test_a_linear_map_stands_between_embeddings_of_different_widths_only():
    assert not EmbedDistill().helpers(Shapes(0, 6, {}), Shapes(0, 6, {}))
    helpers = EmbedDistill().helpers(Shapes(0, 4, {}), Shapes(0, 6, {}))
    assert helpers["projection"].weight.shape == (6, 4)
