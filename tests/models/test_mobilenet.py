"""MobileNetV2: torchvision's own block, what is linear, starting values."""

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual as Reference

from raykd.core.types import Signal
from raykd.models import build
from raykd.models.mobilenet import InvertedResidual
from tests.each import each
from tests.models.starts import assert_he_normal, assert_normal


@each(("width", "stride"), [(5, 1), (5, 2), (7, 1), (7, 2)])
def test_a_block_is_torchvision_s(width, stride):
    torch.manual_seed(0)
    block, reference = InvertedResidual(5, width, stride, 6), Reference(5, width, stride, 6)
    names = reference.state_dict()
    reference.load_state_dict(dict(zip(names, block.state_dict().values(), strict=True)))
    x = torch.randn(2, 5, 8, 8)  # normalised, nothing reaches the 6 of a ReLU6
    torch.testing.assert_close(block(x), reference(x), rtol=0, atol=0)
    assert block.residual == (width == 5 and stride == 1)


@pytest.mark.slow
def test_the_first_block_expands_to_its_own_width():
    block = build("mobilenet_v2_x0_5", 10).stages["stage1"][0]
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    sizes = [(conv.in_channels, conv.out_channels) for conv in convolutions]
    assert sizes == [(16, 16), (16, 16), (16, 8)]


@pytest.mark.slow
def test_no_activation_saturates():
    assert not any(isinstance(m, nn.ReLU6) for m in build("mobilenet_v2_x1_0", 10).modules())


@pytest.mark.slow
@torch.no_grad()
def test_stages_are_linear_at_their_end_and_the_embedding_is_not():
    torch.manual_seed(0)
    network = build("mobilenet_v2_x0_5", 10)
    out = network.outputs(torch.randn(4, 3, 32, 32), Signal.FEATURES | Signal.EMBEDDING)
    assert all(out.features[f"stage{number}"].min() < 0 for number in (1, 2, 3, 4))
    assert out.features["stem"].min() == 0
    assert out.embedding.shape == (4, 1280)
    assert out.embedding.min() >= 0


@pytest.mark.slow
def test_each_stage_ends_in_the_norm_that_is_named():
    network = build("mobilenet_v2_x0_5", 10)
    assert list(network.norms) == list(network.stages)
    assert network.norms["stem"] is network.stages["stem"][-1]
    for number in (1, 2, 3, 4):
        assert network.norms[f"stage{number}"] is network.stages[f"stage{number}"][-1].bn


@pytest.mark.slow
def test_it_starts_from_he_s_distribution_and_a_small_classifier():
    torch.manual_seed(0)
    network = build("MobileNetV2", 100)
    assert_he_normal(network)
    assert_normal(network.classifier.weight, 0.01)
    assert not network.classifier.bias.any()
