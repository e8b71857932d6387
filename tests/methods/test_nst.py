"""Neuron selectivity transfer: the kernel sum, read off either Gram matrix."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods.nst import NST, selectivity_loss
from tests.each import each
from tests.small import batch, golden_maps

MAPS = golden_maps()


def naive(student, teacher):
    """Means of (a . b)**2 over all pairs of channels, one at a time."""

    def kernel(one, other):
        total = sum((a @ b) ** 2 for a in one for b in other)
        return total / (len(one) * len(other))

    losses = []
    for mine, theirs in zip(student.flatten(2), teacher.flatten(2), strict=True):
        mine = mine / mine.norm(dim=1, keepdim=True)
        theirs = theirs / theirs.norm(dim=1, keepdim=True)
        losses.append(kernel(theirs, theirs) + kernel(mine, mine) - 2 * kernel(mine, theirs))
    return sum(losses) / len(losses)


def test_the_loss_has_its_golden_value():
    assert selectivity_loss(MAPS["fs"], MAPS["ft"]).item() == pytest.approx(0.2492837741, rel=1e-6)


@pytest.mark.slow
@each(("wide", "wide_teacher", "side"), [(3, 5, 6), (30, 40, 2), (2, 40, 3)])
def test_both_ways_of_summing_are_the_kernel_sum(wide, wide_teacher, side):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, wide, side, side, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, wide_teacher, side, side, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(selectivity_loss(student, teacher), naive(student, teacher))


@pytest.mark.slow
def test_larger_maps_are_averaged_down():
    small = torch.nn.functional.avg_pool2d(MAPS["ft8"], 2)
    torch.testing.assert_close(selectivity_loss(MAPS["fs"], MAPS["ft8"]), naive(MAPS["fs"], small))


@pytest.mark.slow
@each("side", [2, 8])
def test_the_order_and_the_scale_of_channels_do_not_matter(side):
    maps = torch.randn(2, 6, side, side, dtype=torch.float64)
    assert selectivity_loss(maps, 3 * maps.flip(1)).abs() < 1e-14


@pytest.mark.slow
@each("side", [2, 8])
def test_maps_of_zeros_give_no_loss_and_no_gradient(side):
    student = torch.zeros(2, 6, side, side, requires_grad=True)
    loss = selectivity_loss(student, torch.zeros(2, 6, side, side))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@pytest.mark.slow
def test_one_weighted_loss_per_stage_that_both_have():
    logits = torch.zeros(4, 10, dtype=torch.float64)
    student = Outputs(logits, {"stem": MAPS["a8"], "stage1": MAPS["fs"]})
    teacher = Outputs(logits, {"stem": MAPS["a8"], "stage1": MAPS["ft"], "stage2": MAPS["ft"]})
    losses = NST().losses(student, teacher, batch(4), torch.nn.ModuleDict())
    assert losses.keys() == {"stage1"}
    assert losses["stage1"].item() == pytest.approx(50 * 0.2492837741, rel=1e-6)


def test_networks_without_common_stages_are_refused():
    with pytest.raises(ConfigError, match="none in common"):
        NST().helpers(Shapes(10, 6, {}), Shapes(10, 6, {}))
