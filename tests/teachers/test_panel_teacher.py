"""The mean of several teachers' answers: formulas, golden values, gradients."""

import pytest
import torch

from raykd.core.types import Outputs
from raykd.methods.kd import KD
from raykd.teachers.source import PanelTeacher
from tests.each import each
from tests.small import batch, golden_logits

STUDENT, ONE, _ = golden_logits()
ROWS, CLASSES = torch.arange(4.0).double()[:, None], torch.arange(10.0).double()
OTHER = 3.5 * torch.cos(0.5 * ROWS + 0.8 * CLASSES + 0.7)


def mean_of(logits, *settings):
    """The combined logits of teachers that answer with some."""
    sources = [lambda sample, z=z: Outputs(z) for z in logits]
    return PanelTeacher(sources, *settings)(batch()).logits


def test_the_means_are_the_formulas_in_float64():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 8, 10, generator=generator, dtype=torch.float64)
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[:, None, None]
    mean = mean_of(logits, "mean_logits", (2.0, 5.0, 3.0))
    torch.testing.assert_close(mean, (shares * logits).sum(0))
    mean = mean_of(logits, "mean_probabilities", (2.0, 5.0, 3.0))
    torch.testing.assert_close(mean.exp(), (shares * logits.softmax(2)).sum(0))
    torch.testing.assert_close(mean_of(logits, "mean_logits"), logits.mean(0))


def test_the_divergence_from_the_mean_logits_has_its_golden_value():
    loss = KD(weight=1.0).logit_loss(STUDENT, mean_of([ONE, OTHER], "mean_logits"), batch())
    assert loss.item() == pytest.approx(4.521373648, rel=1e-9)


def test_the_divergence_from_the_mean_probabilities_has_its_golden_value():
    heat = 4.0  # of both sides: the mean is at temperature 1
    mean = mean_of([ONE / heat, OTHER / heat], "mean_probabilities")
    loss = heat**2 * KD(weight=1.0, temperature=1.0).logit_loss(STUDENT / heat, mean, batch())
    assert loss.item() == pytest.approx(4.347802402, rel=1e-9)


def test_the_mean_of_the_divergences_from_each_has_its_golden_value():
    losses = [KD(weight=1.0).logit_loss(STUDENT, one, batch()) for one in (ONE, OTHER)]
    assert sum(losses).item() / 2 == pytest.approx(5.078251515, rel=1e-9)


def test_average_losses_and_average_probabilities_have_equal_gradients():
    student, kd = STUDENT.clone().requires_grad_(), KD(temperature=1.0)
    losses = torch.stack([kd.logit_loss(student, z, batch()) for z in (ONE, OTHER)])
    mean = mean_of([ONE, OTHER], "mean_probabilities")
    (apart,) = torch.autograd.grad(losses.mean(), student)
    (together,) = torch.autograd.grad(kd.logit_loss(student, mean, batch()), student)
    torch.testing.assert_close(together, apart)


@each("combine", ["mean_logits", "mean_probabilities"])
def test_no_share_is_no_part_even_of_what_is_not_likely_at_all(combine):
    far = torch.full_like(ONE, -1e4).scatter_(1, torch.zeros(4, 1).long(), 1e4)
    torch.testing.assert_close(mean_of([ONE, far], combine, (1.0, 0.0)).softmax(1), ONE.softmax(1))
    sure = mean_of([far, far], combine)
    assert bool(sure.isfinite().all())
