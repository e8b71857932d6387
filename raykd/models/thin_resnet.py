"""CIFAR residual networks, resnet8 to resnet110 and the four times wider 8x4 and 32x4.

He et al. 2016 (arXiv 1512.03385), section 4.2, with the projection shortcuts and the widths
of the CRD benchmark (Tian et al. 2020, arXiv 1910.10699). Depth is 6 n + 2.
"""

from collections import OrderedDict

from torch import Tensor, nn

from raykd.models.staged import Rectified, Staged, he_normal, in_order

WIDTHS = (16, 16, 32, 64)  # stem, then three stages
WIDE = (32, 64, 128, 256)  # the "x4" networks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; ReLU after the sum, but for the `last` of a stage."""

    def __init__(self, width_in: int, width: int, stride: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return out if self.last else self.relu(out)


def shortcut(width_in: int, width: int, stride: int) -> nn.Module:
    """The shortcut of a block: the identity, or a projection where the shape changes."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def resnet(depth: int, widths: tuple[int, int, int, int], classes: int) -> Staged:
    """A residual network for small images of any size; stages: stem, stage1, stage2, stage3.

    Convolutions start from He's normal distribution over the fan out, batch norms from 1 and 0.
    """
    blocks = (depth - 2) // 6
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms = {"stem": nn.BatchNorm2d(widths[0])}
    parts["stem"] = Rectified(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), norms["stem"])
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        before, width = widths[number - 1], widths[number]
        stage = [
            BasicBlock(
                width if index else before,
                width,
                1 if index else stride,
                last=index == blocks - 1,
            )
            for index in range(blocks)
        ]
        parts[f"stage{number}"] = Rectified(*stage)
        norms[f"stage{number}"] = stage[-1].bn2
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = nn.Linear(widths[3], classes)
    network = in_order(parts, norms)
    he_normal(network)
    return network
