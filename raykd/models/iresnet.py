"""IResNet: residual networks from aligned faces of 112 x 112 pixels to embeddings of 512 numbers.

Duta et al. 2020 (arXiv 2004.04989) improved the residual block; the networks are those by which
ArcFace (Deng et al. 2019, arXiv 1801.07698) and its successors are compared, as insightface has
them: a norm before each block, PReLU, and no ReLU after the sum.
"""

from collections import OrderedDict

from torch import Tensor, nn

from raykd.models.staged import Staged, in_order

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
EMBEDDING = 512
MAP = 7  # side of the last map


class Block(nn.Module):
    """Two 3x3 convolutions, with a norm before each of them and after both."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(width_in)
        self.first = nn.Conv2d(width_in, width, 3, 1, 1, bias=False)
        self.between = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.second = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] -> [B, width, H / stride, W / stride]."""
        out = self.prelu(self.between(self.first(self.before(x))))
        return self.shortcut(x) + self.bn(self.second(out))


def iresnet(depth: int, classes: int) -> Staged:
    """IResNet of a `depth` in `BLOCKS`; stages: stem, stage1, ..., stage4, the last four halve.

    Convolutions start from N(0, 0.1**2). The scale of the last batch norm stays at 1.
    """
    width = WIDTHS[0]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms = {"stem": nn.BatchNorm2d(width)}
    parts["stem"] = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), norms["stem"])
    for number, (wider, count) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True), start=1):
        blocks = [Block(width, wider, 2), *(Block(wider, wider, 1) for _ in range(count - 1))]
        first = [nn.PReLU(width)] if number == 1 else []
        parts[f"stage{number}"] = nn.Sequential(*first, *blocks)
        norms[f"stage{number}"] = blocks[-1].bn
        width = wider
    last = nn.BatchNorm1d(EMBEDDING)
    last.weight.requires_grad_(False)
    linear = nn.Linear(width * MAP * MAP, EMBEDDING)
    parts["pool"] = nn.Sequential(nn.BatchNorm2d(width), nn.Flatten(), linear, last)
    parts["classifier"] = nn.Linear(EMBEDDING, classes)
    network = in_order(parts, norms)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    return network
