"""Contrastive distillation of samples: the contrast, sample by sample."""

import math

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.sample_contrastive_kd import SampleContrastiveKD
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()


def loss_of(method, student=STUDENT, teacher=TEACHER, epoch=0):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def test_the_loss_is_the_formula_sample_by_sample():
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    mine, theirs, total = STUDENT.tolist(), TEACHER.tolist(), 0.0
    for i in range(4):
        own = math.exp(cosine(mine[i], theirs[i]))
        rest = sum(math.exp(cosine(mine[i], mine[j])) for j in range(4) if j != i)
        total -= math.log(own / (own + rest))
    loss = loss_of(SampleContrastiveKD(weight=0.5))
    assert loss.item() == pytest.approx(0.5 * total / 4, rel=1e-12)


def test_one_sample_alone_has_no_loss_and_no_gradient():
    student = STUDENT[:1].clone().requires_grad_()
    loss = loss_of(SampleContrastiveKD(), student, TEACHER[:1])
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@pytest.mark.slow
def test_only_the_directions_of_the_logits_matter():
    scale = torch.tensor([[0.2], [1.5], [3.0], [0.7]], dtype=torch.float64)
    moved = loss_of(SampleContrastiveKD(), scale * STUDENT, 5 * TEACHER)
    torch.testing.assert_close(moved, loss_of(SampleContrastiveKD()))


@pytest.mark.slow
def test_turning_towards_the_teacher_lowers_the_loss():
    plain = loss_of(SampleContrastiveKD())
    assert loss_of(SampleContrastiveKD(), STUDENT, STUDENT) < plain
    assert loss_of(SampleContrastiveKD(), STUDENT, -STUDENT) > plain
