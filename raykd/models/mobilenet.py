"""MobileNetV2 for small images, at widths 0.5 and 1.0.

Sandler et al. 2018 (arXiv 1801.04381), as the CRD benchmark has it (Tian et al. 2020, arXiv
1910.10699): ReLU instead of ReLU6, fewer strides, an expansion in the first block too, and
widths that are not rounded to multiples of 8. "MobileNetV2" alone means width 0.5 in that
benchmark, and 1.0 in the repository of spot-adaptive distillation (Song et al. 2022, arXiv
2205.02399).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from raykd.models.staged import Rectified, Staged, he_normal, in_order

EMBEDDING = 1280  # at every width up to 1


class Row(NamedTuple):
    """Blocks of one width, as a line of table 2 in the paper."""

    expansion: int
    width: int  # at width factor 1
    blocks: int
    stride: int  # the first block's; 1 in the others


STAGES = (
    (Row(1, 16, 1, 1), Row(6, 24, 2, 1)),
    (Row(6, 32, 3, 2),),
    (Row(6, 64, 4, 2), Row(6, 96, 3, 1)),
    (Row(6, 160, 3, 2), Row(6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """A depthwise 3x3 convolution between two of 1x1, widest inside and linear at its end."""

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        expansion: int,
        activated: Callable[[nn.Conv2d], Iterable[nn.Module]] | None = None,
    ) -> None:
        """`activated`: a convolution with its norm and its activation; None: `normalised`."""
        super().__init__()
        inner, activated = width_in * expansion, activated or normalised
        self.expand = nn.Sequential(*activated(nn.Conv2d(width_in, inner, 1, bias=False)))
        self.depthwise = nn.Sequential(
            *activated(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False))
        )
        self.reduce = nn.Conv2d(inner, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]."""
        out = self.bn(self.reduce(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


def normalised(conv: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """A convolution with the batch norm and the ReLU that follow it."""
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)


def mobilenet_v2(factor: float, classes: int) -> Staged:
    """MobileNetV2 with widths times `factor` <= 1; stages: stem, stage1, ..., stage4.

    The stem halves the image. The other stages end without a ReLU: their pre-activations are
    their outputs. The last 1x1 convolution belongs to the pooling. Convolutions start from He's
    normal distribution over the fan out, the classifier from N(0, 0.01**2), its bias from 0,
    batch norms from 1 and 0.
    """
    width = int(32 * factor)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms = {"stem": nn.BatchNorm2d(width)}
    parts["stem"] = Rectified(nn.Conv2d(3, width, 3, 2, 1, bias=False), norms["stem"])
    for number, rows in enumerate(STAGES, start=1):
        stage: list[InvertedResidual] = []
        for row in rows:
            width_in, width = width, int(row.width * factor)
            stage.append(InvertedResidual(width_in, width, row.stride, row.expansion))
            for _ in range(row.blocks - 1):
                stage.append(InvertedResidual(width, width, 1, row.expansion))
        parts[f"stage{number}"] = nn.Sequential(*stage)
        norms[f"stage{number}"] = stage[-1].bn
    widen = nn.Conv2d(width, EMBEDDING, 1, bias=False)
    parts["pool"] = nn.Sequential(*normalised(widen), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = classifier = nn.Linear(EMBEDDING, classes)
    network = in_order(parts, norms)
    he_normal(network)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return network
