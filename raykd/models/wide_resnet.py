"""Wide residual networks for small images, wrn_16_1 to wrn_40_2 and wrn_28_10, without dropout.

Zagoruyko & Komodakis 2016 (arXiv 1605.07146): blocks normalise and rectify their input, so the
stages end in plain sums. Depth is 6 n + 4; the name gives the depth and the widening factor.
"""

from collections import OrderedDict

from torch import Tensor, nn

from raykd.models.staged import Staged, he_normal, in_order


class Block(nn.Module):
    """Two 3x3 convolutions, each of a normalised and rectified input, with a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if width_in != width:
            self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]."""
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        # A projection sees the active input, an identity the raw one.
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth: int, factor: int, classes: int) -> Staged:
    """A pre-activation network for images of any size; stages: stem, stage1, stage2, stage3.

    The stages' outputs are raw; their pre-activations are what the next batch norm makes of them.
    Convolutions start from He's normal distribution over the fan out, batch norms from 1 and 0,
    the classifier's bias from 0.
    """
    blocks = (depth - 4) // 6
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms: dict[str, nn.BatchNorm2d] = {}
    parts["stem"] = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        first = Block(widths[number - 1], widths[number], stride)
        others = [Block(widths[number], widths[number], 1) for _ in range(blocks - 1)]
        parts[f"stage{number}"] = nn.Sequential(first, *others)
        if number > 1:
            norms[f"stage{number - 1}"] = first.bn1
    norms["stage3"] = nn.BatchNorm2d(widths[3])
    parts["pool"] = nn.Sequential(
        norms["stage3"], nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    parts["classifier"] = classifier = nn.Linear(widths[3], classes)
    network = in_order(parts, norms, normalised_later=True)
    he_normal(network)
    nn.init.zeros_(classifier.bias)
    return network
