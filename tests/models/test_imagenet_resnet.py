"""ResNet18 to ResNet152 for small images: torchvision's own with another stem."""

import math

import pytest
import torch
import torchvision
from torch import nn

from raykd.models import build
from raykd.models.imagenet_resnet import LAYERS, Bottleneck
from tests.each import each
from tests.models.starts import assert_he_normal, assert_uniform

DEPTHS = [pytest.param(d, marks=pytest.mark.slow if d > 50 else []) for d in LAYERS]


@each("depth", DEPTHS)
@torch.no_grad()
def test_it_is_torchvision_s_with_a_small_stem(depth):
    torch.manual_seed(0)
    network = build(f"cifar_resnet{depth}", 10)
    reference = torchvision.models.get_model(f"resnet{depth}", num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = nn.Identity()
    ours, names = network.network.state_dict().values(), reference.state_dict()
    reference.load_state_dict(dict(zip(names, ours, strict=True)))
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(network(pixels), reference(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@each("depth", [18, 50])
def test_the_norms_are_the_last_of_the_stages_main_branches(depth):
    network = build(f"cifar_resnet{depth}", 10)
    assert list(network.norms) == list(network.stages)
    assert network.norms["stem"] is network.stages["stem"][-1]
    for name in ("stage1", "stage2", "stage3", "stage4"):
        block = network.stages[name][-1]
        assert block.last
        assert isinstance(block, Bottleneck) == (depth == 50)
        assert network.norms[name] is (block.bn3 if depth == 50 else block.bn2)


@pytest.mark.slow
def test_it_starts_from_he_s_distribution_and_torch_s_classifier():
    torch.manual_seed(0)
    network = build("cifar_resnet18", 100)
    assert_he_normal(network)
    assert_uniform(network.classifier.weight, 1 / math.sqrt(512))
