"""Jacobian matching: against the whole Jacobian, and what its gradient reaches."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.jacobian import JacobianMatching, sensitivity
from tests.small import ALL, batch, outputs_of, pair


def smooth(seed, width=9):
    """A network without kinks, of pixels [B, 3, 4, 4] and five classes."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(48, width), nn.Tanh(), nn.Linear(width, 5)
    return nn.Sequential(*layers).double()


def drawn(rows=3):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(rows, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (rows,), generator=generator)
    return Batch(pixels, labels, torch.arange(rows), view=0, epoch=0)


def said(network, sample):
    pixels = sample.pixels.clone().requires_grad_()
    return Outputs(network(pixels), pixels=pixels)


def loss_of(method, student, teacher, sample):
    losses = method.losses(said(student, sample), said(teacher, sample), sample, None)
    assert list(losses) == ["logits"]
    return losses["logits"]


def whole(network, sample):
    """Each sample's Jacobian of its label's logit, of length 1, from the batch's whole Jacobian."""
    full = torch.autograd.functional.jacobian(network, sample.pixels)  # [B, C, B, 3, H, W]
    rows = [full[n, y, n].flatten() for n, y in enumerate(sample.labels.tolist())]
    return torch.stack([row / row.square().sum().sqrt() for row in rows])


def test_the_loss_is_the_formula_with_the_whole_jacobian():
    student, teacher, sample = smooth(0), smooth(1, 20), drawn()
    mine, theirs = whole(student, sample), whole(teacher, sample)
    expected = 3 * (mine - theirs).square().sum() / (3 * 48)
    loss = loss_of(JacobianMatching(weight=3.0), student, teacher, sample)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_real_networks_have_the_sensitivity_of_their_whole_jacobian():
    network = pair()[0].double().eval()
    sample = batch(3)
    sample = replace(sample, pixels=sample.pixels.double(), looks={})
    found = sensitivity(outputs_of(network, sample, ALL), sample.labels, differentiable=False)
    torch.testing.assert_close(found, whole(network, sample), rtol=1e-9, atol=1e-12)


def test_the_second_backward_is_the_slope_of_the_loss_by_the_parameters():
    student, teacher, sample = smooth(0), smooth(1, 20), drawn()
    method = JacobianMatching()
    loss_of(method, student, teacher, sample).backward()
    generator = torch.Generator().manual_seed(1)
    step = 1e-5
    for name, parameter in student.named_parameters():
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = 0.0
        for sign in (1, -1):
            moved = copy.deepcopy(student)
            moved.get_parameter(name).data += sign * step * way
            slope += sign * loss_of(method, moved, teacher, sample).item() / (2 * step)
        if name == "3.bias":
            # A shift of all logits changes no derivative by the pixels.
            assert parameter.grad is None or not parameter.grad.any()
            assert abs(slope) < 1e-9
            continue
        assert (parameter.grad * way).sum().item() == pytest.approx(slope, rel=1e-6)


def test_nothing_of_the_teacher_gets_a_gradient():
    student, teacher, sample = smooth(0), smooth(1), drawn()
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    mine, theirs = said(student, sample), said(teacher, sample)
    JacobianMatching().losses(mine, theirs, sample, None)["logits"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert theirs.pixels.grad is None


def test_scaled_logits_have_the_same_sensitivity():
    student, sample = smooth(0), drawn()
    larger = nn.Sequential(student, Scaled(7.0))
    assert loss_of(JacobianMatching(), student, larger, sample).abs() < 1e-25
    assert loss_of(JacobianMatching(), student, nn.Sequential(student, Scaled(-1.0)), sample) > 0


class Scaled(nn.Module):
    """The input by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_a_mixed_sample_counts_as_its_heavier_class():
    student, teacher, sample = smooth(0), smooth(1), drawn()
    soft = 0.7 * torch.eye(5)[sample.labels] + 0.3 * torch.eye(5)[(sample.labels + 1) % 5]
    mixed = replace(sample, targets=soft)
    losses = [loss_of(JacobianMatching(), student, teacher, given) for given in (sample, mixed)]
    assert torch.equal(*losses)


def test_logits_that_ignore_the_pixels_give_no_nan():
    student, teacher, sample = smooth(0), smooth(1), drawn()
    student[1].weight.data.zero_()
    loss = loss_of(JacobianMatching(), student, teacher, sample)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student[1].weight.grad.isfinite().all())


def test_it_reads_logits_and_the_pixels_that_they_came_from():
    assert JacobianMatching().needs() == Signal.LOGITS | Signal.PIXELS
    student, sample = smooth(0), drawn()
    logits = Outputs(student(sample.pixels))
    with pytest.raises(LookupError, match="PIXELS"):
        JacobianMatching().losses(logits, logits, sample, None)
