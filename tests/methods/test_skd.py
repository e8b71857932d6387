"""Spherical distillation: golden values, and the invariants that make it spherical."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.base import soft_cross_entropy
from raykd.methods.skd import SKD, normalise, to_sphere, to_teacher_std
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
SCALE = torch.tensor([[0.2], [1.5], [3.0], [0.7]], dtype=torch.float64)
SHIFT = torch.tensor([[1.0], [-4.0], [0.3], [9.0]], dtype=torch.float64)


def objective(method, student=STUDENT, teacher=TEACHER, alpha=0.9):
    """alpha * divergence + (1 - alpha) * cross entropy, through the method's own functions."""
    helpers = method.helpers(None, None)
    if method.needs_calibration(helpers):
        method.calibrate(helpers, [Outputs(teacher)])
    sample = Batch(torch.empty(0), TARGETS, torch.arange(4), view=0, epoch=0)
    mine, theirs = Outputs(student), Outputs(teacher)
    scores = method.scores(mine, theirs, helpers)
    divergence = method.losses(mine, theirs, sample, helpers)["logits"]
    return divergence * alpha / method.weight + (1 - alpha) * F.cross_entropy(scores, TARGETS)


@each(
    ("method", "expected"),
    [
        (SKD(variant="layer_norm", radius=2.0), 3.89730052),
        (SKD(variant="teacher_std"), 7.290725916),
    ],
)
def test_the_objective_has_its_golden_value(method, expected):
    assert objective(method).item() == pytest.approx(expected, rel=1e-6)  # float32 inside


def test_layer_norm_is_the_formula_in_float64():
    mean = STUDENT.mean(1, keepdim=True)
    variance = ((STUDENT - mean) ** 2).mean(1, keepdim=True)
    expected = 2.5 * (STUDENT - mean) / (variance + 1e-7).sqrt()
    torch.testing.assert_close(normalise(STUDENT, 2.5), expected)
    builtin = 2.5 * F.layer_norm(STUDENT, (10,), eps=1e-7)
    torch.testing.assert_close(normalise(STUDENT, 2.5), builtin)


def test_the_other_variants_are_their_formulas_in_float64():
    expected = STUDENT * TEACHER.std(1, keepdim=True) / (STUDENT.std(1, keepdim=True) + 1e-7)
    torch.testing.assert_close(to_teacher_std(STUDENT, TEACHER), expected)
    expected = 6.0 * F.normalize(STUDENT, dim=1)
    torch.testing.assert_close(to_sphere(STUDENT, 6.0), expected)


@each("method", [SKD(radius=2.0), SKD(variant="teacher_std")])
def test_the_students_scale_and_shift_do_not_matter(method):
    # Up to the 1e-7 of the denominator and float32 (1e-6 of logits up to 20).
    changed = objective(method, student=SCALE * STUDENT + SHIFT)
    assert changed.item() == pytest.approx(objective(method).item(), rel=1e-5)


def test_only_the_students_scale_does_not_matter_to_l2():
    method = SKD(variant="l2", radius=6.0)
    scaled = objective(method, student=SCALE * STUDENT)
    assert scaled.item() == pytest.approx(objective(method).item(), rel=1e-5)
    shifted = objective(method, student=STUDENT + SHIFT)
    assert shifted.item() != pytest.approx(objective(method).item(), rel=1e-2)


def test_the_teachers_scale_and_shift_matter_to_teacher_std_alone():
    layer_norm, teacher_std = SKD(radius=2.0), SKD(variant="teacher_std")
    changed = SCALE * TEACHER + SHIFT
    assert objective(layer_norm, teacher=changed).item() == pytest.approx(
        objective(layer_norm).item(), rel=1e-5
    )
    assert objective(teacher_std, teacher=changed).item() != pytest.approx(
        objective(teacher_std).item(), rel=1e-2
    )


@each("variant", ["layer_norm", "teacher_std"])
def test_a_student_on_the_teachers_ray_has_no_divergence_and_no_gradient(variant):
    method = SKD(variant=variant)
    student = (SCALE * TEACHER + SHIFT).requires_grad_(True)
    loss = objective(method, student=student, alpha=1.0)
    loss.backward()
    assert loss.abs() < 1e-5
    assert student.grad.abs().max() < 1e-4


def test_normalised_logits_give_the_plain_objective():
    student = normalise(STUDENT, 2.0)
    teacher = normalise(TEACHER, 2.0)
    plain = 0.9 * soft_cross_entropy(student, teacher, 4.0)
    plain = plain + 0.1 * F.cross_entropy(student, TARGETS)
    result = objective(SKD(radius=2.0), student=student, teacher=teacher)
    assert result.item() == pytest.approx(plain.item(), rel=1e-5)


def test_equal_stds_make_teacher_std_plain_distillation():
    student = STUDENT * TEACHER.std(1, keepdim=True) / STUDENT.std(1, keepdim=True)
    plain = 0.9 * soft_cross_entropy(student, TEACHER, 4.0)
    plain = plain + 0.1 * F.cross_entropy(student, TARGETS)
    result = objective(SKD(variant="teacher_std"), student=student)
    assert result.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_gradient_is_orthogonal_to_scale_and_shift():
    student = STUDENT.clone().requires_grad_(True)
    loss = soft_cross_entropy(normalise(student, 2.0), normalise(TEACHER, 2.0), 4.0)
    loss.backward()
    centred = STUDENT - STUDENT.mean(1, keepdim=True)
    assert student.grad.sum(1).abs().max() < 1e-15
    assert (student.grad * centred).sum(1).abs().max() < 1e-7  # the 1e-7 of the denominator


def test_the_automatic_radius_is_the_teachers_mean_row_std_over_all_batches():
    method = SKD()
    helpers = method.helpers(None, None)
    assert method.needs_calibration(helpers)
    method.calibrate(helpers, [Outputs(TEACHER[:1]), Outputs(TEACHER[1:])])
    expected = TEACHER.std(1, correction=0).mean()
    assert helpers["radius"].value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not method.needs_calibration(helpers)


def test_the_automatic_radius_of_l2_is_the_mean_norm():
    method = SKD(variant="l2")
    helpers = method.helpers(None, None)
    method.calibrate(helpers, [Outputs(TEACHER)])
    assert helpers["radius"].value.item() == pytest.approx(TEACHER.norm(dim=1).mean().item())


def test_a_given_radius_and_teacher_std_need_no_calibration():
    for method in (SKD(radius=3.0), SKD(variant="teacher_std")):
        assert not method.needs_calibration(method.helpers(None, None))


def test_the_best_reachable_probability_is_the_one_of_the_formula():
    # 10 classes at radius 2: 1 / (1 + 9 exp(-20 / 3)) = 0.9887, a floor of 0.0114 nats.
    one_hot = F.one_hot(torch.tensor([3]), 10).double()
    best = normalise(one_hot, 2.0).softmax(1).max().item()
    assert best == pytest.approx(0.9887, abs=5e-5)
