"""Logit standardisation: the golden value, and which changes of the logits it does not see."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.base import standardise
from raykd.methods.logit_standardisation import LogitStandardisation
from raykd.methods.skd import SKD
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
SCALE = torch.tensor([[0.2], [1.5], [3.0], [0.7]], dtype=torch.float64)
SHIFT = torch.tensor([[1.0], [-4.0], [0.3], [9.0]], dtype=torch.float64)


def loss_of(method, student=STUDENT, teacher=TEACHER):
    sample = Batch(torch.empty(0), TARGETS, torch.arange(len(student)), view=0, epoch=0)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def test_the_loss_has_its_golden_value():
    loss = loss_of(LogitStandardisation())
    assert loss.item() == pytest.approx(9 * 0.8938935569, rel=1e-9)


def test_the_loss_is_the_formula_in_float64():
    generator = torch.Generator().manual_seed(0)
    student, teacher = 5 * torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)

    def prepared(logits):
        mean = logits.sum(1, keepdim=True) / 7
        deviation = (((logits - mean) ** 2).sum(1, keepdim=True) / 6).sqrt()
        powers = ((logits - mean) / (deviation + 1e-7) / 3).exp()
        return powers / powers.sum(1, keepdim=True)

    p, q = prepared(teacher), prepared(student)
    expected = 9 * 0.5 * (p * (p / q).log()).sum() / 6
    loss = loss_of(LogitStandardisation(temperature=3.0, weight=0.5), student, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_a_positive_scale_and_a_shift_of_either_network_do_not_matter():
    # Up to the 1e-7 that is added to standard deviations from 0.4 on.
    method, expected = LogitStandardisation(), loss_of(LogitStandardisation())
    for moved in (
        loss_of(method, student=SCALE * STUDENT + SHIFT),
        loss_of(method, teacher=SCALE * TEACHER + SHIFT),
    ):
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=0)
    turned = loss_of(method, student=-STUDENT)
    assert turned.item() != pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.slow
def test_rows_have_mean_0_and_unbiased_deviation_1():
    rows = standardise(SCALE * STUDENT + SHIFT)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(rows.std(1), torch.ones(4).double(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_it_is_spherical_distillation_of_radius_1_but_for_the_unbiased_deviation():
    factor = (9 / 10) ** 0.5  # of the standard deviations
    mine = loss_of(LogitStandardisation(temperature=2.0, weight=1.0))
    sphere = SKD(radius=1.0, temperature=2.0 / factor, weight=1.0)
    # radius 1 at T / factor gives the same probabilities; T**2 differs. 1e-6: SKD's float32 radius
    torch.testing.assert_close(loss_of(sphere) * factor**2, mine, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_the_labels_read_the_raw_logits():
    method = LogitStandardisation()
    assert torch.equal(method.scores(Outputs(STUDENT), None, method.helpers(None, None)), STUDENT)


@pytest.mark.slow
def test_equal_logits_give_a_finite_loss_and_gradient():
    for dtype in (torch.float32, torch.float64):
        student = torch.full((4, 10), 3.0, dtype=dtype, requires_grad=True)
        loss = loss_of(LogitStandardisation(), student, TEACHER.to(dtype))
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())
        uniform = F.softmax(standardise(student), dim=1)
        torch.testing.assert_close(uniform, torch.full_like(uniform, 0.1))
