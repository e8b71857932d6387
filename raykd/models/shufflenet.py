"""ShuffleNetV1 (3 groups) and ShuffleNetV2 (width 1) for small images.

Zhang et al. 2018 (arXiv 1707.01083) and Ma et al. 2018 (arXiv 1807.11164), as the CRD benchmark
has them (Tian et al. 2020, arXiv 1910.10699): a 1x1 stem of stride 1, no max pooling and, in
version 1, a ReLU after the depthwise convolution too. Everything starts as in torch.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.models.staged import Rectified, Staged, in_order

STEM = 24  # width
GROUPS = 3  # groups of the 1x1 convolutions of version 1
STAGES_V1 = ((240, 4), (480, 8), (960, 4))  # width and blocks, the first of which halves the map
STAGES_V2 = ((116, 4), (232, 8), (464, 4))
EMBEDDING_V2 = 1024


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal out the channels [B, K, H, W]: the first of every group, the second of every group...

    Of several groups, the result lies channels last in memory, as batches do: a plain reshape of
    the channels would lose that.
    """
    dealt = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4)
    return dealt.flatten(3).permute(0, 3, 1, 2)


class GroupBlock(nn.Module):
    """Two grouped 1x1 convolutions around a depthwise one, with a shortcut; version 1.

    ReLU after the shortcut, but for the `last` of a stage.
    """

    def __init__(self, width_in: int, width: int, *, last: bool) -> None:
        super().__init__()
        self.halves = width_in != width
        self.last = last
        # The pooled input makes up the rest of the width.
        branch = width - width_in if self.halves else width
        inner = branch // 4
        self.groups = 1 if width_in == STEM else GROUPS
        self.conv1 = nn.Conv2d(width_in, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        stride = 2 if self.halves else 1
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]; stride 2 where it widens."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(shuffle(out, self.groups))))
        out = self.bn3(self.conv3(out))
        out = torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1) if self.halves else out + x
        return out if self.last else self.relu(out)


class SplitBlock(nn.Module):
    """Convolutions of one half of the channels, or of copies of all where it widens; version 2.

    The result is rectified and shuffled, but for the `last` of a stage, where the half that
    passed through stands first.
    """

    def __init__(self, width_in: int, width: int, *, last: bool) -> None:
        super().__init__()
        half, stride = width // 2, 1
        self.last = last
        self.left: nn.Module | None = None
        if width_in != width:
            stride = 2
            self.left = nn.Sequential(*depthwise(width_in, half, stride), nn.ReLU(inplace=True))
        self.right = nn.Sequential(
            nn.Conv2d(half if self.left is None else width_in, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            *depthwise(half, half, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]; stride 2 where it widens."""
        left, right = x.chunk(2, dim=1) if self.left is None else (self.left(x), x)
        right = self.right(right)
        if self.last:
            return torch.cat([left, right], dim=1)
        return shuffle(torch.cat([left, F.relu(right, inplace=True)], dim=1), 2)


def depthwise(width_in: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    """A depthwise 3x3 convolution and one of 1x1, each normalised."""
    return (
        nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False),
        nn.BatchNorm2d(width_in),
        nn.Conv2d(width_in, width, 1, bias=False),
        nn.BatchNorm2d(width),
    )


class HalfRectified(Rectified):
    """A stage of version 2: the second half of its channels ends in a ReLU, then all are shuffled.

    What it was before is not shuffled, as in the benchmark.
    """

    def rectify(self, before: Tensor, *, inplace: bool) -> Tensor:
        """The end of the stage; it never overwrites `before`."""
        left, right = before.chunk(2, dim=1)
        return shuffle(torch.cat([left, F.relu(right)], dim=1), 2)


def shufflenet_v1(classes: int) -> Staged:
    """ShuffleNetV1 for images of any size; stages: stem, stage1, stage2, stage3."""
    parts, width_in = _stem(), STEM
    for number, (width, count) in enumerate(STAGES_V1, start=1):
        blocks = _blocks(GroupBlock, width_in, width, count)
        parts[f"stage{number}"] = Rectified(*blocks)
        width_in = width
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = nn.Linear(width_in, classes)
    return in_order(parts)


def shufflenet_v2(classes: int) -> Staged:
    """ShuffleNetV2 for images of any size; stages: stem, stage1, stage2, stage3.

    The last 1x1 convolution belongs to the pooling.
    """
    parts, width_in = _stem(), STEM
    for number, (width, count) in enumerate(STAGES_V2, start=1):
        blocks = _blocks(SplitBlock, width_in, width, count)
        parts[f"stage{number}"] = HalfRectified(*blocks)
        width_in = width
    parts["pool"] = nn.Sequential(
        nn.Conv2d(width_in, EMBEDDING_V2, 1, bias=False),
        nn.BatchNorm2d(EMBEDDING_V2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    parts["classifier"] = nn.Linear(EMBEDDING_V2, classes)
    return in_order(parts)


def _blocks(
    kind: type[GroupBlock] | type[SplitBlock], width_in: int, width: int, count: int
) -> list[nn.Module]:
    """The blocks of a stage, the first of which widens."""
    return [
        kind(width if index else width_in, width, last=index == count - 1) for index in range(count)
    ]


def _stem() -> OrderedDict[str, nn.Module]:
    stem = Rectified(nn.Conv2d(3, STEM, 1, bias=False), nn.BatchNorm2d(STEM))
    return OrderedDict(stem=stem)
