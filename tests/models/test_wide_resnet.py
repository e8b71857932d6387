"""Wide residual networks: the order of norm, ReLU and convolution, and starting values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Signal
from raykd.models import build
from raykd.models.wide_resnet import Block
from tests.each import each
from tests.models.starts import assert_he_normal, assert_uniform

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def normalise(x: Tensor) -> Tensor:
    """A fresh batch norm in training, spelt out, and a ReLU."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    return ((x - mean) / (variance + 1e-5).sqrt()).clamp(min=0)


@each(("width", "stride"), [(4, 1), (6, 1), (6, 2)])
def test_a_block_normalises_before_it_convolves(width, stride):
    torch.manual_seed(0)
    block, x = Block(4, width, stride).double(), torch.randn(2, 4, 8, 8).double()
    given = x.clone()
    active = normalise(x)
    out = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(normalise(out), block.conv2.weight, padding=1)
    if width == 4:
        assert block.shortcut is None
        expected = out + x  # the raw input
    else:
        assert isinstance(block.shortcut, nn.Conv2d)
        expected = out + F.conv2d(active, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, given)


@pytest.mark.slow
def test_the_first_stage_projects_only_where_it_widens():
    thin, wide = build("wrn_16_1", 10), build("wrn_16_2", 10)
    for network, projects in ((thin, [False, True, True]), (wide, [True, True, True])):
        blocks = [network.stages[f"stage{number}"] for number in (1, 2, 3)]
        assert [len(stage) for stage in blocks] == [2, 2, 2]
        assert [stage[0].shortcut is not None for stage in blocks] == projects
        assert all(stage[1].shortcut is None for stage in blocks)


@pytest.mark.slow
def test_the_norms_are_the_ones_that_come_next():
    network = build("wrn_16_2", 10)
    stages = network.stages
    assert list(network.norms) == ["stage1", "stage2", "stage3"]
    assert network.norms["stage1"] is stages["stage2"][0].bn1
    assert network.norms["stage2"] is stages["stage3"][0].bn1
    assert network.norms["stage3"] is network.pool[0]


@pytest.mark.slow
@torch.no_grad()
def test_features_are_raw_and_preactivations_lead_to_the_embedding():
    torch.manual_seed(0)
    network = build("wrn_16_2", 10)
    network(PIXELS)
    out = network.eval().outputs(PIXELS, Signal.FEATURES | Signal.PREACTIVATIONS | Signal.EMBEDDING)
    assert all(out.features[name].min() < 0 for name in network.stages)
    pooled = out.features["stage3.pre"].relu().mean(dim=(2, 3))
    torch.testing.assert_close(pooled, out.embedding)


@pytest.mark.slow
def test_it_starts_from_he_s_distribution_and_a_classifier_without_bias():
    torch.manual_seed(0)
    network = build("wrn_40_2", 100)
    assert_he_normal(network)
    assert_uniform(network.classifier.weight, 1 / math.sqrt(128))
    assert not network.classifier.bias.any()
