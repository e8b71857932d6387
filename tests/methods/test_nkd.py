"""Normalised distillation: golden values and the cross entropies sample by sample."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.nkd import NKD
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()


def loss_of(method, student=STUDENT, teacher=TEACHER, targets=TARGETS, epoch=0):
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def drawn(rows=6, classes=7):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, classes, (rows,), generator=generator)


@each(
    ("method", "expected"),
    [(NKD(), 6.897031947), (NKD(temperature=3.0, gamma=3.5), 77.96238731)],
)
def test_the_loss_has_its_golden_value(method, expected):
    assert loss_of(method).item() == pytest.approx(expected, rel=1e-9)


def test_the_loss_is_the_formula_sample_by_sample():
    def softmax(row, temperature):
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    student, teacher, labels = drawn()
    total = 0.0
    for q, p, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        total -= softmax(p, 1.0)[y] * math.log(softmax(q, 1.0)[y])
        other_p, other_q = (softmax(row[:y] + row[y + 1 :], 2.5) for row in (p, q))
        cross = -sum(a * math.log(b) for a, b in zip(other_p, other_q, strict=True))
        total += 0.4 * 2.5**2 * cross
    loss = loss_of(NKD(temperature=2.5, gamma=0.4, weight=3.0), student, teacher, labels)
    assert loss.item() == pytest.approx(3 * total / len(labels), rel=1e-12)


@pytest.mark.slow
def test_the_least_of_the_other_classes_term_is_the_teacher_s_entropy():
    student, teacher, labels = drawn()
    probabilities = F.softmax(teacher, dim=1)
    rest = probabilities.scatter(1, labels[:, None], 0.0)
    rest = rest / rest.sum(1, keepdim=True)
    entropy = -torch.xlogy(rest, rest).sum(1).mean()
    target = probabilities.gather(1, labels[:, None])
    least = loss_of(NKD(), teacher, teacher, labels) + (target * target.log()).mean()
    assert least.item() == pytest.approx(1.5 * entropy.item(), rel=1e-12)
    alone = NKD(gamma=1.0), NKD(gamma=0.0)
    moved = [loss_of(method, student, teacher, labels).item() for method in alone]
    assert moved[0] - moved[1] > entropy.item()


@pytest.mark.slow
def test_a_mixed_sample_counts_as_its_heavier_class():
    soft = 0.6 * F.one_hot(TARGETS, 10) + 0.4 * F.one_hot(TARGETS.roll(1), 10)
    assert torch.equal(loss_of(NKD(), targets=soft.float()), loss_of(NKD()))


@pytest.mark.slow
def test_the_weight_may_change_with_the_epoch():
    method = NKD(weight=((0, 1.0), (5, 0.25)))
    assert loss_of(method, epoch=5).item() == pytest.approx(loss_of(method).item() / 4)
