"""The CIFAR residual networks: sizes, shapes and starting values."""

import math

import pytest
import torch
from torch import nn

from raykd.models import build, measure, parameter_count
from tests.each import each

# With 10, 100 and 200 classes, batch-norm affine included: the networks of the CRD benchmark.
# He et al. 2016, table 6, rounds those with 10 classes to 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
COUNTS = {
    "resnet8": (78_042, 83_892, 90_392),
    "resnet14": (175_258, 181_108, 187_608),
    "resnet20": (272_474, 278_324, 284_824),
    "resnet32": (466_906, 472_756, 479_256),
    "resnet44": (661_338, 667_188, 673_688),
    "resnet56": (855_770, 861_620, 868_120),
    "resnet110": (1_730_714, 1_736_564, 1_743_064),
    "resnet8x4": (1_210_410, 1_233_540, 1_259_240),
    "resnet32x4": (7_410_730, 7_433_860, 7_459_560),
}


@each("name", COUNTS)
def test_networks_have_the_published_number_of_parameters(name):
    for classes, count in zip((10, 100, 200), COUNTS[name], strict=True):
        assert parameter_count(build(name, classes)) == count


@pytest.mark.slow
@each("name", COUNTS)
def test_two_of_the_stages_halve_the_image(name):
    for size in [(32, 32), (64, 64), (16, 48)]:
        stem, *widths = (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)
        height, width = size
        shapes = measure(build(name, 100), size)
        assert shapes.classes == 100
        assert shapes.embedding == widths[-1]
        assert list(shapes.features.items()) == [
            ("stem", (stem, height, width)),
            ("stage1", (widths[0], height, width)),
            ("stage2", (widths[1], height // 2, width // 2)),
            ("stage3", (widths[2], height // 4, width // 4)),
        ]


def test_convolutions_start_from_the_normal_distribution_of_he():
    torch.manual_seed(0)
    convolutions = [m for m in build("resnet32x4", 10).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * 15 + 3  # stem, blocks, projections
    for conv in convolutions:
        kernel = conv.kernel_size[0] * conv.kernel_size[1]
        deviation = math.sqrt(2 / (conv.out_channels * kernel))
        count = conv.weight.numel()
        assert conv.bias is None
        # Standard errors of a mean and of a deviation; 5 of them are passed once in 10**6.
        assert abs(conv.weight.mean()) < 5 * deviation / math.sqrt(count)
        assert abs(conv.weight.std() - deviation) < 5 * deviation / math.sqrt(2 * count)


def test_batch_norms_start_as_the_identity_and_the_classifier_as_torch_does():
    torch.manual_seed(0)
    network = build("resnet20", 100)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    bound = 1 / math.sqrt(64)  # nn.Linear: uniform within one over the root of the fan in
    weight = network.classifier.weight
    assert 0.99 * bound < weight.abs().max() <= bound


def test_the_seed_decides_the_starting_values():
    torch.manual_seed(3)
    first = build("resnet8", 10).network.state_dict()
    torch.manual_seed(3)
    second = build("resnet8", 10).network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_a_change_of_size_is_projected():
    thin, wide = build("resnet8", 10), build("resnet8x4", 10)
    thin_stages, wide_stages = ("stage2", "stage3"), ("stage1", "stage2", "stage3")
    for network, projected in ((thin, thin_stages), (wide, wide_stages)):
        for stage in ("stage1", "stage2", "stage3"):
            shortcut = network.stages[stage][0].shortcut
            assert isinstance(shortcut, nn.Sequential) == (stage in projected)


def test_a_checkpoint_of_the_plain_network_loads_into_a_fresh_one(tmp_path):
    network = build("resnet8", 10)
    torch.save(network.network.state_dict(), tmp_path / "resnet8.pt")
    state = torch.load(tmp_path / "resnet8.pt", weights_only=True)
    parts = {"stem", "stage1", "stage2", "stage3", "classifier"}
    assert {key.partition(".")[0] for key in state} == parts
    fresh = build("resnet8", 10)
    fresh.network.load_state_dict(state)
    pixels = torch.randn(2, 3, 32, 32)
    network.eval()
    fresh.eval()
    torch.testing.assert_close(network(pixels), fresh(pixels), rtol=0, atol=0)


def test_a_stage_leaves_the_map_before_it_alone():
    network = build("resnet8", 10).train()
    x, maps = torch.randn(2, 3, 32, 32), []
    for stage in network.stages.values():
        x = stage(x)
        maps.append((x, x.detach().clone()))
    network.classifier(network.pool(x)).sum().backward()
    assert all(torch.equal(after, before) for after, before in maps)
    assert all(parameter.grad is not None for parameter in network.parameters())
