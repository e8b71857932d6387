"""ShuffleNets: the shuffle, the blocks, what a stage was before its ReLU, starting values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from raykd.core.types import Signal
from raykd.models import build
from raykd.models.shufflenet import GROUPS, GroupBlock, SplitBlock, shuffle
from tests.each import each
from tests.models.starts import assert_uniform


def dealt(x: Tensor, groups: int) -> Tensor:
    """The shuffle, channel by channel: out[i * groups + g] is channel i of group g."""
    size = x.shape[1] // groups
    return torch.stack([x[:, g * size + i] for i in range(size) for g in range(groups)], dim=1)


@pytest.mark.slow
@each("groups", [1, 2, 3])
@each("layout", [torch.contiguous_format, torch.channels_last])
def test_a_shuffle_deals_out_the_channels_of_the_groups(groups, layout):
    x = torch.randn(2, 12, 3, 5).contiguous(memory_format=layout)
    out = shuffle(x, groups)
    torch.testing.assert_close(out, dealt(x, groups), rtol=0, atol=0)
    assert groups == 1 or out.is_contiguous(memory_format=torch.channels_last)


@each(("width_in", "width", "inner"), [(24, 96, 18), (48, 48, 12), (48, 96, 12)])
def test_a_block_of_version_1_is_what_the_benchmark_says(width_in, width, inner):
    torch.manual_seed(0)
    block = GroupBlock(width_in, width, last=False).double()
    stride = 1 if width_in == width else 2
    groups = 1 if width_in == 24 else GROUPS
    x = torch.randn(2, width_in, 8, 8).double()
    assert block.conv1.out_channels == inner  # a quarter of what the branch gives
    out = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, groups=groups)))
    out = F.conv2d(dealt(out, groups), block.conv2.weight, None, stride, 1, groups=inner)
    out = block.bn3(F.conv2d(F.relu(block.bn2(out)), block.conv3.weight, groups=GROUPS))
    pooled = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
    expected = out + x if stride == 1 else torch.cat([out, pooled], dim=1)
    torch.testing.assert_close(block(x), F.relu(expected))


@each("number", [1, 2, 3])
@torch.no_grad()
def test_a_stage_of_version_2_is_torchvision_s(number):
    torch.manual_seed(0)
    stage = build("shufflenet_v2", 10).stages[f"stage{number}"]
    width, count = (116, 232, 464)[number - 1], (4, 8, 4)[number - 1]
    width_in = (24, 116, 232)[number - 1]
    reference = nn.Sequential(
        InvertedResidual(width_in, width, 2),
        *(InvertedResidual(width, width, 1) for _ in range(count - 1)),
    )
    names = reference.state_dict()
    reference.load_state_dict(dict(zip(names, stage.state_dict().values(), strict=True)))
    x = torch.randn(2, width_in, 8, 8)
    torch.testing.assert_close(stage(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@each("training", [True, False])
@torch.no_grad()
def test_a_stage_of_version_2_was_the_untouched_half_and_the_other_before_its_relu(training):
    torch.manual_seed(0)
    network = build("shufflenet_v2", 10).train(training)
    pixels = torch.randn(2, 3, 16, 16)
    features = network.outputs(pixels, Signal.FEATURES | Signal.PREACTIVATIONS).features
    for number in (1, 2, 3):
        before, after = features[f"stage{number}.pre"], features[f"stage{number}"]
        left, right = before.chunk(2, dim=1)
        assert left.min() >= 0 > right.min()
        shuffled = dealt(torch.cat([left, right.relu()], dim=1), 2)
        torch.testing.assert_close(after, shuffled, rtol=0, atol=0)


@pytest.mark.slow
def test_the_halves_of_a_block_do_not_touch_its_input():
    torch.manual_seed(0)
    for block in (SplitBlock(8, 8, last=False), SplitBlock(8, 16, last=False)):
        x = torch.randn(2, 8, 8, 8)
        given = x.clone()
        block(x)
        assert torch.equal(x, given)


@pytest.mark.slow
@each("name", ["shufflenet_v1", "shufflenet_v2"])
def test_everything_starts_as_in_torch(name):
    torch.manual_seed(0)
    network = build(name, 100)
    assert dict(network.norms) == {}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            assert_uniform(module.weight, 1 / math.sqrt(module.weight[0].numel()))
    assert_uniform(network.classifier.weight, 1 / math.sqrt(network.classifier.in_features))
