"""Plain distillation."""

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.kd import KD
from tests.small import golden_logits


def loss_of(method, epoch=0):
    student, teacher, targets = golden_logits()
    sample = Batch(torch.empty(0), targets, torch.arange(4), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    return losses["logits"].item()


def test_the_loss_is_the_weighted_divergence():
    assert loss_of(KD()) == pytest.approx(0.9 * 5.951946853, rel=1e-6)
    assert loss_of(KD(temperature=1.0, weight=0.5)) == pytest.approx(0.5 * 3.144001093, rel=1e-6)


def test_the_weight_may_change_with_the_epoch():
    method = KD(weight=((0, 0.9), (10, 0.1)))
    assert loss_of(method, epoch=10) == pytest.approx(loss_of(method) / 9)
