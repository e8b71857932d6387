"""Schedules, and the one divergence that most methods are made of."""

import math

import pytest
import torch
from pydantic import ValidationError

from raykd.core.record import canonical, fingerprint
from raykd.methods.base import Ramp, soft_cross_entropy, value_at
from raykd.methods.kd import KD
from raykd.methods.mlkd import divergences
from tests.each import each
from tests.small import golden_logits


@each(("temperature", "expected"), [(1.0, 3.144001093), (4.0, 5.951946853)])
def test_the_divergence_has_its_golden_value(temperature, expected):
    student, teacher, _ = golden_logits()
    assert soft_cross_entropy(student, teacher, temperature).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_the_divergence_is_the_formula_in_float64():
    student, teacher, _ = golden_logits()
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 3.0), expected)


def test_a_class_that_nobody_expects_changes_nothing():
    # Would fail for a mean over classes, a common bug of the field's code.
    student, teacher, _ = golden_logits()
    silent = torch.full((4, 1), -1e4, dtype=torch.float64)
    wider = soft_cross_entropy(
        torch.cat([student, silent], 1), torch.cat([teacher, silent], 1), 4.0
    )
    torch.testing.assert_close(wider, soft_cross_entropy(student, teacher, 4.0))


def test_a_class_that_the_teacher_leaves_out_adds_nothing():
    # Would fail for a logarithm of its probability that is multiplied by 0: NaN.
    student, teacher, _ = golden_logits()
    teacher[:, 2] = -math.inf
    p, log_q = (teacher / 4).softmax(1), (student / 4).log_softmax(1)
    each = torch.where(p > 0, p * (p.log() - log_q), 0.0).sum(1)
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 4.0), 16 * each.mean())
    torch.testing.assert_close(divergences(student, teacher, 4.0), 16 * each)


def test_the_gradient_is_the_difference_of_the_probabilities():
    student, teacher, _ = golden_logits()
    student.requires_grad_(True)
    soft_cross_entropy(student, teacher, 4.0).backward()
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())


def test_a_schedule_holds_its_value_until_the_next_epoch():
    schedule = ((0, 0.9), (60, 0.5), (80, 0.1))
    assert [value_at(schedule, epoch) for epoch in (0, 59, 60, 79, 80, 99)] == [
        0.9, 0.9, 0.5, 0.5, 0.1, 0.1,
    ]  # fmt: skip
    assert value_at(0.3, 7) == 0.3


def test_a_linear_ramp_goes_from_one_value_to_the_other():
    ramp = Ramp(ramp=(20, 120, 0.5, 1.0))
    values = [value_at(ramp, epoch) for epoch in (0, 20, 45, 70, 119, 120, 500)]
    assert values == pytest.approx([0.5, 0.5, 0.625, 0.75, 0.995, 1.0, 1.0], abs=1e-12)
    assert value_at(KD(weight=Ramp(ramp=(0, 4, 1.0, 0.0))).weight, 1) == 0.75


def test_a_sigmoid_ramp_is_the_published_one():
    ramp = Ramp(ramp=(0, 80, 0.0, 1.0), kind="sigmoid")
    for epoch in (0, 1, 40, 79, 80, 99):
        expected = math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)
        assert value_at(ramp, epoch) == pytest.approx(expected, rel=1e-12)
    assert value_at(ramp, 0) == pytest.approx(0.0067379470)


@each("epochs", [(5, 5), (9, 3)])
def test_the_epochs_of_a_ramp_must_rise(epochs):
    with pytest.raises(ValidationError, match="its epochs rise"):
        KD(weight=Ramp(ramp=(*epochs, 0.0, 1.0)))


def test_each_form_of_a_schedule_has_its_own_fingerprint_and_survives_json():
    forms = [0.5, ((0, 0.5),), Ramp(ramp=(0, 9, 0.0, 1.0))]
    forms.append(forms[-1].model_copy(update={"kind": "sigmoid"}))
    methods = [KD(weight=form) for form in forms]
    assert len({fingerprint(method) for method in methods}) == 4
    assert [KD.read(method.plain()) for method in methods] == methods
    assert canonical(methods[2]) == '{"name":"kd","weight":{"ramp":[0,9,0.0,1.0]}}'


@each("epochs", [(1, 2), (0, 5, 5), (0, 9, 3)])
def test_a_schedule_must_start_at_0_and_rise(epochs):
    with pytest.raises(ValidationError, match="start at 0 and rise"):
        KD(weight=tuple((epoch, 0.5) for epoch in epochs))
