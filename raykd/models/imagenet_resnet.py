"""The residual networks of ImageNet, ResNet18 to ResNet152, with a stem for small images.

He et al. 2016 (arXiv 1512.03385), table 1: four stages, but a 3x3 stem of stride 1 and no max
pooling, as in the CRD benchmark (Tian et al. 2020, arXiv 1910.10699).
"""

from collections import OrderedDict

from torch import Tensor, nn

from raykd.models.staged import Rectified, Staged, he_normal, in_order
from raykd.models.thin_resnet import BasicBlock, shortcut

WIDTHS = (64, 128, 256, 512)  # channels of the stages; bottlenecks end four times wider
LAYERS = {  # depth -> blocks of each stage
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, four times narrower inside, with a shortcut.

    ReLU after the sum, but for the `last` of a stage. The 3x3 convolution has the stride.
    """

    def __init__(self, width_in: int, width: int, stride: int, *, last: bool) -> None:
        super().__init__()
        inner = width // 4
        self.last = last
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.shortcut(x)
        return out if self.last else self.relu(out)


def cifar_resnet(depth: int, classes: int) -> Staged:
    """A four-stage residual network for images of any size; stages: stem, stage1, ..., stage4.

    Convolutions start from He's normal distribution over the fan out, batch norms from 1 and 0.
    """
    block, expansion = (BasicBlock, 1) if depth < 50 else (Bottleneck, 4)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms = {"stem": nn.BatchNorm2d(WIDTHS[0])}
    parts["stem"] = Rectified(nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), norms["stem"])
    width_in = WIDTHS[0]
    for number, (inner, count) in enumerate(zip(WIDTHS, LAYERS[depth], strict=True), start=1):
        width = inner * expansion
        stage: list[BasicBlock | Bottleneck] = []
        for index in range(count):
            stride = 2 if index == 0 and number > 1 else 1
            stage.append(block(width_in, width, stride, last=index == count - 1))
            width_in = width
        parts[f"stage{number}"] = Rectified(*stage)
        last = stage[-1]
        norms[f"stage{number}"] = last.bn3 if isinstance(last, Bottleneck) else last.bn2
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = nn.Linear(width_in, classes)
    network = in_order(parts, norms)
    he_normal(network)
    return network
