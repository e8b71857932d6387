"""Curriculum temperature: where it starts, what it is taught, and when."""

import math

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.base import soft_cross_entropy
from raykd.methods.ctkd import CTKD, Temperature
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()


def loss_of(method, helpers, student=STUDENT, teacher=TEACHER, epoch=0):
    sample = Batch(torch.empty(0), TARGETS, torch.arange(len(student)), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, helpers)
    assert list(losses) == ["logits"]
    return losses["logits"]


def helpers_of(method, theta=1.0):
    helpers = method.helpers(None, None).double()
    helpers["temperature"].theta.data.fill_(theta)
    return helpers


def divergence(temperature):
    """T**2 KL at a temperature, straight from the definition."""
    p, q = ((z / temperature).exp() for z in (TEACHER, STUDENT))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum().item() / 4


def slope(theta, step=1e-5):
    """d / d theta of the loss of T(theta), by a central difference."""

    def at(value):
        return divergence(1 + 20 / (1 + math.exp(-value)))

    return (at(theta + step) - at(theta - step)) / (2 * step)


def test_the_temperature_has_its_golden_start():
    # The golden number is one of float32: 1e-7.
    assert Temperature().double()(-1.0).item() == pytest.approx(15.62117195, rel=1e-7)
    assert Temperature().double()(-1.0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))


@each("theta", [1.0, -2.0])
def test_the_loss_is_the_divergence_at_the_temperature(theta):
    method = CTKD(weight=0.5)
    temperature = 1 + 20 / (1 + math.exp(-theta))
    loss = loss_of(method, helpers_of(method, theta)).item()
    assert loss == pytest.approx(0.5 * divergence(temperature), rel=1e-10)
    plain = soft_cross_entropy(STUDENT, TEACHER, temperature)
    assert loss == pytest.approx(0.5 * plain.item(), rel=1e-12)


@pytest.mark.slow
@each("epoch", [0, 4, 9, 50])
def test_theta_s_gradient_is_the_loss_s_turned_round_and_scaled_by_the_curriculum(epoch):
    # The T**2 counts in the gradient. 1e-6: the central difference.
    method = CTKD(weight=0.9)
    for theta in (1.0, -1.5):
        helpers = helpers_of(method, theta)
        loss_of(method, helpers, epoch=epoch).backward()
        expected = method.reversal(epoch) * 0.9 * slope(theta)
        assert helpers["temperature"].theta.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_descent_step_on_theta_makes_the_loss_larger():
    method = CTKD()
    helpers = helpers_of(method)
    before = loss_of(method, helpers, epoch=20)
    before.backward()
    theta = helpers["temperature"].theta
    theta.data -= 0.1 * theta.grad
    assert loss_of(method, helpers, epoch=20) > before


@pytest.mark.slow
def test_without_a_reversal_theta_learns_nothing():
    temperature = Temperature().double()
    temperature(0.0).square().backward()
    assert temperature.theta.grad.item() == 0


@pytest.mark.slow
def test_the_student_s_gradient_is_that_of_plain_distillation_in_every_epoch():
    method = CTKD(weight=1.0)
    expected = STUDENT.clone().requires_grad_()
    soft_cross_entropy(expected, TEACHER, 1 + 20 / (1 + math.exp(-1.0))).backward()
    for epoch in (0, 30):
        student = STUDENT.clone().requires_grad_()
        loss_of(method, helpers_of(method), student, epoch=epoch).backward()
        torch.testing.assert_close(student.grad, expected.grad, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_the_curriculum_is_a_cosine_from_0_to_minus_1_and_stays_there():
    method = CTKD(curriculum_epochs=10)
    strengths = [method.reversal(epoch) for epoch in range(12)]
    expected = [-(1 - math.cos(math.pi * e / 10)) / 2 for e in range(1, 11)]  # epochs from 1
    assert strengths[:10] == pytest.approx(expected, abs=1e-15)
    assert strengths[9:] == [-1.0] * 3
    assert CTKD(curriculum_epochs=0).reversal(0) == -1.0
