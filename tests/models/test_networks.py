"""Every network of the table: sizes, shapes, gradients, and what it was before its ReLUs."""

import copy

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Signal
from raykd.models import NETWORKS, Staged, build, check_name, measure, parameter_count
from raykd.models.staged import Rectified
from tests.each import each
from tests.tiers import NETWORK_KINDS, slow_but

# Parameters with 10, 100 and 200 classes, batch-norm affine included; the stages' outputs, stem
# first, as channels x side for images of 32 x 32 pixels; the embedding. Of the CRD benchmark's
# own code, but wrn_28_10 and mobilenet_v2_x1_0, which are those of spot-adaptive distillation.
THIN, TWICE = "16x32 16x32 32x16 64x8 64", "16x32 32x32 64x16 128x8 128"
VGG = "64x32 128x16 256x8 512x4 512x4 512"
SHALLOW = "64x32 64x32 128x16 256x8 512x4 512"
DEEP = "64x32 256x32 512x16 1024x8 2048x4 2048"
TABLE = {
    "wrn_16_1": ((175_066, 180_916, 187_416), THIN),
    "wrn_16_2": ((691_674, 703_284, 716_184), TWICE),
    "wrn_28_10": ((36_479_194, 36_536_884, 36_600_984), "16x32 160x32 320x16 640x8 640"),
    "wrn_40_1": ((563_930, 569_780, 576_280), THIN),
    "wrn_40_2": ((2_243_546, 2_255_156, 2_268_056), TWICE),
    "vgg8": ((3_918_858, 3_965_028, 4_016_328), VGG),
    "vgg11": ((9_231_114, 9_277_284, 9_328_584), VGG),
    "vgg13": ((9_416_010, 9_462_180, 9_513_480), VGG),
    "vgg16": ((14_728_266, 14_774_436, 14_825_736), VGG),
    "vgg19": ((20_040_522, 20_086_692, 20_137_992), VGG),
    "mobilenet_v2_x0_5": ((697_546, 812_836, 940_936), "16x16 12x16 16x8 48x4 160x2 1280"),
    "mobilenet_v2_x1_0": ((2_237_770, 2_353_060, 2_481_160), "32x16 24x16 32x8 96x4 320x2 1280"),
    "shufflenet_v1": ((862_768, 949_258, 1_045_358), "24x32 240x16 480x8 960x4 960"),
    "shufflenet_v2": ((1_263_278, 1_355_528, 1_458_028), "24x32 116x16 232x8 464x4 1024"),
    "cifar_resnet18": ((11_173_962, 11_220_132, 11_271_432), SHALLOW),
    "cifar_resnet34": ((21_282_122, 21_328_292, 21_379_592), SHALLOW),
    "cifar_resnet50": ((23_520_842, 23_705_252, 23_910_152), DEEP),
    "cifar_resnet101": ((42_512_970, 42_697_380, 42_902_280), DEEP),
    "cifar_resnet152": ((58_156_618, 58_341_028, 58_545_928), DEEP),
}
ALIASES = {
    "MobileNetV2": "mobilenet_v2_x0_5",
    "ShuffleV1": "shufflenet_v1",
    "ShuffleV2": "shufflenet_v2",
    **{f"ResNet{depth}": f"cifar_resnet{depth}" for depth in (18, 34, 50, 101, 152)},
}

# Others, of families of their own or large ones.
OTHERS = ("resnet8x4", "vgg8", "shufflenet_v1", "cifar_resnet18", "cifar_resnet50")
LARGE = ("resnet110", "wrn_40_2", "vgg19", "mobilenet_v2_x1_0", "cifar_resnet34")

# Small images, but three of them: MobileNetV2 normalises maps of one pixel.
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PLAIN = Signal.FEATURES | Signal.EMBEDDING
BOTH = PLAIN | Signal.PREACTIVATIONS


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """To the last bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(scope="module", params=slow_but([*NETWORK_KINDS, *OTHERS, *LARGE], NETWORK_KINDS))
def network(request) -> Staged:
    """A network that has seen one batch, so that its running statistics are its own."""
    torch.manual_seed(0)
    network = build(request.param, 10)
    with torch.no_grad():
        network(PIXELS)
    return network


def test_every_network_is_in_a_table_of_sizes():
    others = ("resnet", "mobilefacenet", "iresnet")  # in files of their own
    assert list(TABLE) == [name for name in NETWORKS if not name.startswith(others)]


@each("name", slow_but(TABLE, NETWORK_KINDS))
def test_networks_have_the_sizes_of_the_benchmark(name):
    counts, text = TABLE[name]
    *maps, embedding = text.split()
    sides = [tuple(int(number) for number in each.split("x")) for each in maps]
    with torch.device("meta"):
        for classes, count in zip((10, 100, 200), counts, strict=True):
            network = build(name, classes)
            assert parameter_count(network) == count
        small, large = measure(network, (32, 32)), measure(network, (64, 64))
    assert (small.classes, small.embedding) == (200, int(embedding))
    assert list(small.features.values()) == [(width, side, side) for width, side in sides]
    assert large.embedding == small.embedding
    doubled = [(width, 2 * side, 2 * side) for width, side in sides]
    if name.startswith("vgg"):
        doubled[-1] = (512, 4, 4)  # one more pooling
    assert list(large.features.values()) == doubled
    assert list(small.features) == ["stem", *(f"stage{number}" for number in range(1, len(maps)))]


def test_the_benchmark_s_own_names_are_understood():
    for alias, name in ALIASES.items():
        assert check_name(alias) == name
        assert alias in NETWORKS
        assert alias not in list(NETWORKS)
        assert NETWORKS[alias] is NETWORKS[name]


@each("training", [True, False])
@torch.no_grad()
def test_stages_in_order_are_the_network_and_leave_each_other_s_maps_alone(network, training):
    network.train(training)
    x, maps = PIXELS, []
    for stage in network.stages.values():
        x = stage(x)
        maps.append((x, x.clone()))
    logits = network.classifier(network.pool(x))
    assert_same(logits, network.network(PIXELS))
    assert_same(logits, network(PIXELS))
    for after, before in maps:
        assert_same(after, before)


@each("training", [True, False])
@torch.no_grad()
def test_asking_for_preactivations_changes_nothing_else(network, training):
    network.train(training)
    start = {name: buffer.clone() for name, buffer in network.named_buffers()}
    plain = network.outputs(PIXELS, PLAIN)
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for name, buffer in network.named_buffers():
        buffer.copy_(start[name])
    both = network.outputs(PIXELS, BOTH)
    assert list(both.features) == [n for name in network.stages for n in (f"{name}.pre", name)]
    assert_same(both.logits, plain.logits)
    assert_same(both.embedding, plain.embedding)
    for name in network.stages:
        assert_same(both.features[name], plain.features[name])
    for name, buffer in network.named_buffers():
        assert_same(buffer, statistics[name])
        assert training == (not torch.equal(buffer, start[name]))


@each("training", [True, False])
@torch.no_grad()
def test_preactivations_are_what_the_next_relu_reads(network, training):
    network.train(training)
    features = network.outputs(PIXELS, BOTH).features
    for name, stage in network.stages.items():
        before, after = features[f"{name}.pre"], features[name]
        if type(stage) is Rectified:
            assert_same(F.relu(before), after)
            assert before.min() < 0
        elif network.normalised_later and name in network.norms:
            assert_same(copy.deepcopy(network.norms[name])(after), before)
        elif not isinstance(stage, Rectified):  # ShuffleNetV2 shuffles after its ReLU
            assert before is after


def test_every_parameter_has_a_finite_gradient(network):
    network.train().zero_grad()
    F.cross_entropy(network(PIXELS), torch.tensor([0, 1, 2])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_preactivations_carry_gradients(network):
    network.train().zero_grad()
    out = network.outputs(PIXELS, BOTH)
    before = [value for name, value in out.features.items() if name.endswith(".pre")]
    torch.stack([value.square().mean() for value in (*before, out.logits)]).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
def test_images_may_lie_channels_last_in_memory(network):
    network.eval()
    other = network(PIXELS.contiguous(memory_format=torch.channels_last))
    # Convolutions may add in another order: float32 over up to 152 layers.
    torch.testing.assert_close(other, network(PIXELS), rtol=1e-3, atol=1e-3)
