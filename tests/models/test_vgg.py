"""VGG networks: torchvision's own layers, the poolings between the stages, starting values."""

import pytest
import torch
from torch import nn
from torchvision.models.vgg import make_layers

from raykd.core.types import Signal
from raykd.models import build
from raykd.models.staged import Rectified
from raykd.models.vgg import CONVOLUTIONS, WIDTHS
from tests.each import each
from tests.models.starts import assert_he_normal, assert_normal


@pytest.mark.slow
@each("depth", CONVOLUTIONS)
def test_depth_counts_the_convolutions_and_three_linear_layers(depth):
    with torch.device("meta"):
        modules = build(f"vgg{depth}", 10).modules()
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == depth - 3


@each("side", [32, 64])
@torch.no_grad()
def test_it_is_torchvision_s_with_one_pooling_more_for_large_images(side):
    torch.manual_seed(0)
    network = build("vgg11", 10)
    words: list[str | int] = []
    for number, (width, count) in enumerate(zip(WIDTHS, CONVOLUTIONS[11], strict=True)):
        words += [width] * count
        if number < 3 or (number == 3 and side == 64):
            words.append("M")
    layers = make_layers(words, batch_norm=True)
    ours = [value for name, value in network.network.state_dict().items() if "classif" not in name]
    layers.load_state_dict(dict(zip(layers.state_dict(), ours, strict=True)))
    pixels = torch.randn(2, 3, side, side)
    last = network.outputs(pixels, Signal.FEATURES).features["stage4"]
    torch.testing.assert_close(last, layers(pixels), rtol=0, atol=0)
    assert last.shape == (2, 512, 4, 4)


@pytest.mark.slow
@each(("side", "pooled"), [(14, 3), (16, 4)])
def test_a_map_is_pooled_once_more_where_it_is_eight_pixels_high(side, pooled):
    (pool, *_), x = build("vgg8", 10).stages["stage4"], torch.randn(1, 1, side // 2, 9)
    assert pool(x).shape[2] == (pooled if side >= 16 else side // 2)


@pytest.mark.slow
def test_each_stage_ends_in_the_norm_that_is_named():
    network = build("vgg13", 10)
    assert list(network.norms) == list(network.stages)
    for name, stage in network.stages.items():
        assert type(stage) is Rectified
        assert network.norms[name] is stage[-1]


@pytest.mark.slow
def test_it_starts_from_he_s_distribution_and_a_small_classifier():
    torch.manual_seed(0)
    network = build("vgg8", 100)
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert_he_normal(network)
    assert_normal(network.classifier.weight, 0.01)
    assert not network.classifier.bias.any()
