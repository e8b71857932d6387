"""Relational distillation: golden values, and the relations from their differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.relational_kd import RelationalKD, relations
from tests.each import each
from tests.small import golden_embeddings

STUDENT, TEACHER = golden_embeddings()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)


def loss_of(method, student=STUDENT, teacher=TEACHER):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=0)
    mine, theirs = Outputs(LOGITS, embedding=student), Outputs(LOGITS, embedding=teacher)
    losses = method.losses(mine, theirs, sample, method.helpers(None, None))
    assert list(losses) == ["embedding"]
    return losses["embedding"]


def naive_distances(x):
    """Distances over the mean of those between different samples, from [N, N, D] differences."""
    squares = ((x[None] - x[:, None]) ** 2).sum(2).clamp_min(1e-12)
    apart = ~torch.eye(len(x), dtype=torch.bool)
    distance = squares.sqrt() * apart
    return distance / distance[apart].mean()


def naive_angles(x):
    """Cosines [i, j, k] between x_j - x_i and x_k - x_i, from [N, N, D] differences."""
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return torch.einsum("ijd,ikd->ijk", directions, directions)


def naive(student, teacher):
    """Both losses in float64."""
    student, teacher = student.double(), teacher.double()
    return (
        F.smooth_l1_loss(naive_distances(student), naive_distances(teacher)),
        F.smooth_l1_loss(naive_angles(student), naive_angles(teacher)),
    )


def drawn(rows, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)


def test_the_terms_have_their_golden_values():
    distance, angle = relations(STUDENT, TEACHER)
    assert distance.item() == pytest.approx(0.001008585402, rel=1e-9)
    assert angle.item() == pytest.approx(0.00306864959, rel=1e-9)
    assert loss_of(RelationalKD()).item() == pytest.approx(0.1786471146, rel=1e-9)


@each(("rows", "width", "width_teacher"), [(3, 2, 5), (8, 16, 4), (13, 3, 3)])
def test_the_terms_are_their_formulas_from_differences(rows, width, width_teacher):
    student, teacher = drawn(rows, width) * 2 + 7, drawn(rows, width_teacher, seed=1)
    for mine, expected in zip(relations(student, teacher), naive(student, teacher), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)
    method = RelationalKD(distance_weight=2.0, angle_weight=3.0, weight=0.5)
    distance, angle = naive(student, teacher)
    torch.testing.assert_close(loss_of(method, student, teacher), distance + 1.5 * angle)


def test_the_gradient_is_that_of_the_formula_from_differences():
    student, teacher = drawn(7, 5), drawn(7, 6, seed=1)
    for term in range(2):
        gradients = []
        for terms in (relations, naive):
            x = student.clone().requires_grad_()
            gradients += torch.autograd.grad(terms(x, teacher)[term], x)
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_samples_at_the_same_place_have_no_direction_and_no_distance():
    # Inner products of equal rows differ in their last digit, which must not be taken for one.
    for width in (3, 64, 130):
        for seed in range(4):
            student = drawn(16, width, seed, torch.float32).relu()
            student[5], student[15], student[2] = student[0], student[1], 0
            teacher = drawn(16, 8, seed + 1, torch.float32)
            teacher[7] = teacher[3]
            student.requires_grad_()
            terms = relations(student, teacher)
            # float32 in the losses: 1e-5
            for mine, expected in zip(terms, naive(student, teacher), strict=True):
                torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=0)
            (gradient,) = torch.autograd.grad(sum(terms), student)
            assert gradient.abs().max() < 10


@pytest.mark.slow
def test_equal_samples_throughout_give_no_nan():
    student = torch.ones(4, 6, requires_grad=True)
    loss = loss_of(RelationalKD(), student, TEACHER.float())
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


@pytest.mark.slow
def test_near_samples_far_from_the_origin_are_told_apart_in_float32():
    student, teacher = drawn(8, 16) + 3, drawn(8, 16, seed=1)
    student[1] = student[0] + 1e-4 * student[1]
    student, teacher = student.float(), teacher.float()
    for mine, expected in zip(relations(student, teacher), naive(student, teacher), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=0)  # float32 losses


@pytest.mark.slow
def test_one_sample_alone_and_two_have_no_loss():
    for rows in (1, 2):
        student = STUDENT[:rows].clone().requires_grad_()
        loss = loss_of(RelationalKD(), student, TEACHER[:rows])
        loss.backward()
        assert loss.abs() < 1e-12
        assert student.grad.abs().max() < 1e-12


@pytest.mark.slow
def test_shifts_rotations_and_a_scale_do_not_matter():
    student, teacher = drawn(6, 5), drawn(6, 4, seed=1)
    turn = torch.linalg.qr(drawn(5, 5, seed=2)).Q
    moved = relations(3 * student @ turn + 2, teacher)
    for mine, expected in zip(moved, relations(student, teacher), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)


@pytest.mark.slow
def test_it_reads_embeddings_alone():
    assert RelationalKD().needs() == Signal.EMBEDDING
    assert math.isclose(loss_of(RelationalKD(weight=2.0)) / loss_of(RelationalKD()), 2)
