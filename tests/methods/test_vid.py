"""Variational information distillation: golden values and the Gaussian density."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from raykd.core.types import Outputs, Shapes
from raykd.methods.vid import VID, Gaussian
from tests.small import batch, golden_maps

MAPS = golden_maps()


def golden():
    """A distribution of 5 channels, given 3, with weights W[o, k] = 0.1 cos(o + 2 k)."""
    gaussian = Gaussian(3, 5).double()
    for layer in gaussian.mean:
        if isinstance(layer, nn.Conv2d):
            out, width, _, _ = layer.weight.shape
            weight = 0.1 * torch.cos(torch.arange(out)[:, None] + 2.0 * torch.arange(width)[None])
            layer.weight.data.copy_(weight[:, :, None, None].double())
    return gaussian


def test_the_variances_start_at_5():
    rho = Gaussian(3, 5).rho
    assert rho.tolist() == pytest.approx([4.993229183] * 5, rel=1e-6)


def test_the_loss_has_its_golden_value():
    # The weights of the golden value are exact in float64 alone: 1e-6.
    loss = golden()(MAPS["fs"], MAPS["ft"])
    assert loss.item() == pytest.approx(0.8547238081, rel=1e-6)


@pytest.mark.slow
def test_the_loss_is_the_negative_log_density():
    gaussian = golden()
    gaussian.rho.data = torch.linspace(-3, 3, 5).double()
    variance = torch.log1p(gaussian.rho.exp()) + 1e-5
    density = Normal(gaussian.mean(MAPS["fs"]), variance.sqrt()[:, None, None])
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    expected = -density.log_prob(MAPS["ft"]).mean() - constant
    torch.testing.assert_close(gaussian(MAPS["fs"], MAPS["ft"]), expected)


@pytest.mark.slow
def test_one_distribution_and_one_weighted_loss_per_stage():
    student = Shapes(10, 6, {"stem": (2, 8, 8), "stage1": (3, 8, 8), "stage2": (3, 4, 4)})
    teacher = Shapes(10, 6, {"stem": (9, 8, 8), "stage1": (5, 4, 4), "stage2": (5, 4, 4)})
    method = VID(weight=2.0)
    helpers = method.helpers(student, teacher).double()
    assert list(helpers) == ["stage1", "stage2"]
    logits = torch.zeros(4, 10, dtype=torch.float64)
    mine = Outputs(logits, {"stage1": MAPS["a8"], "stage2": MAPS["fs"]})
    theirs = Outputs(logits, {"stage1": MAPS["ft"], "stage2": MAPS["ft"]})
    losses = method.losses(mine, theirs, batch(4), helpers)
    expected = {name: 2 * helpers[name](mine.features[name], MAPS["ft"]) for name in helpers}
    torch.testing.assert_close(dict(losses), expected)
