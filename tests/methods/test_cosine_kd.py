"""Cosine distillation: the golden value, the formulas, and the temperature of each sample."""

import math

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.cosine_kd import CosineKD, class_cosine, weighted_temperatures
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()


def loss_of(method, student=STUDENT, teacher=TEACHER):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=0)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def drawn(rows=6, classes=5):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cosine(a, b, epsilon=0.0):
    lengths = math.hypot(*a) * math.hypot(*b) + epsilon
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def by_class(student, teacher, temperatures):
    """2 mean(T)**2 (1 - mean over classes of the columns' cosine), from nested lists."""
    p = [softmax(row, t) for row, t in zip(teacher, temperatures, strict=True)]
    q = [softmax(row, t) for row, t in zip(student, temperatures, strict=True)]
    columns = [*zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)]
    mean = sum(abs(cosine(a, b, 1e-8)) for a, b in columns) / len(columns)
    return 2 * (sum(temperatures) / len(temperatures)) ** 2 * (1 - mean)


def test_the_class_term_has_its_golden_value():
    loss = class_cosine(STUDENT, TEACHER, torch.full((4, 1), 4.0).double())
    assert loss.item() == pytest.approx(5.203954517, rel=1e-9)
    assert loss_of(CosineKD(weighted=False)).item() == pytest.approx(5.203954517, rel=1e-9)


def test_both_terms_are_their_formulas():
    student, teacher = drawn()
    mine, theirs = student.tolist(), teacher.tolist()
    alike = [cosine(softmax(q, 1.0), softmax(p, 1.0)) for q, p in zip(mine, theirs, strict=True)]
    span = max(alike) - min(alike)
    each = [1.5 + (5.0 - 1.5) * (max(alike) - kappa) / span for kappa in alike]
    found = weighted_temperatures(student, teacher, 1.5, 5.0)
    assert found.shape == (6, 1)
    assert found.flatten().tolist() == pytest.approx(each, rel=1e-11)
    method = CosineKD(temperature=3.0, low=1.5, high=5.0, weight=0.5)
    expected = 0.5 * (by_class(mine, theirs, [3.0] * 6) + by_class(mine, theirs, each))
    assert loss_of(method, student, teacher).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.slow
def test_the_least_alike_sample_gets_the_highest_temperature():
    student, teacher = drawn()
    teacher[0] = student[0]
    teacher[4] = -20 * student[4]
    found = weighted_temperatures(student, teacher, 2.0, 6.0).flatten()
    assert found.argmin() == 0 and found.argmax() == 4
    assert found[0].item() == pytest.approx(2.0) and found[4].item() == pytest.approx(6.0)


@pytest.mark.slow
def test_samples_that_are_all_as_alike_get_the_low_temperature():
    student, teacher = (logits[:1].repeat(4, 1) for logits in drawn())
    for dtype in (torch.float32, torch.float64):
        found = weighted_temperatures(student.to(dtype), teacher.to(dtype), 2.0, 6.0)
        assert torch.equal(found, torch.full((4, 1), 2.0, dtype=dtype))


@pytest.mark.slow
def test_the_temperatures_of_the_samples_have_no_gradient():
    student, teacher = drawn()
    student.requires_grad_()
    assert not weighted_temperatures(student, teacher, 2.0, 6.0).requires_grad
    each = weighted_temperatures(student, teacher, 2.0, 6.0)
    fixed = class_cosine(student, teacher, torch.full((6, 1), 4.0).double())
    fixed = fixed + class_cosine(student, teacher, each)
    (expected,) = torch.autograd.grad(fixed, student)
    (gradient,) = torch.autograd.grad(loss_of(CosineKD(), student, teacher), student)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.slow
def test_one_sample_alone_has_no_loss():
    student = STUDENT[:1].clone().requires_grad_()
    loss = loss_of(CosineKD(), student, TEACHER[:1])
    loss.backward()
    assert loss == 0
    assert not student.grad.any()
