"""MobileFaceNet: a small network from aligned faces of 112 x 112 pixels to embeddings.

Chen et al. 2018 (arXiv 1804.07573), table 1. With 112 x 96 pixels it has the paper's 0.99 million
parameters. The widths and the two smaller forms are those of the paper's section 4.
"""

from collections import OrderedDict

from torch import nn

from raykd.models.mobilenet import InvertedResidual
from raykd.models.staged import Staged, he_normal, in_order

# (expansion, width, blocks, stride of the first block) of each stage's rows, as in table 1.
STAGES = (
    ((2, 64, 5, 2),),
    ((4, 128, 1, 2), (2, 128, 6, 1)),
    ((4, 128, 1, 2), (2, 128, 2, 1)),
)
WIDE = 512  # channels before the global depthwise convolution


def rectified(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution, its batch norm, and a PReLU with a slope for each channel."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.PReLU(conv.out_channels))


def mobilefacenet(kernel: tuple[int, int], wide: bool, embedding: int, classes: int) -> Staged:
    """MobileFaceNet; stages: stem, stage1, stage2, stage3, of which each halves the image.

    `kernel` is the size of the last map, a sixteenth of the image's: (7, 7) for 112 x 112 pixels.
    `wide`: a convolution to 512 channels comes before the global depthwise convolution of that
    size; `embedding` is the width of the linear 1x1 convolution after it, 0 for none. The stages
    end without a ReLU: the stem's, and the first depthwise convolution, begin the first stage.
    """
    width = 64
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms = {"stem": nn.BatchNorm2d(width)}
    parts["stem"] = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), norms["stem"])
    first: list[nn.Module] = [
        nn.PReLU(width),
        rectified(nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)),
    ]
    for number, rows in enumerate(STAGES, start=1):
        blocks: list[InvertedResidual] = []
        for expansion, wider, count, stride in rows:
            blocks.append(InvertedResidual(width, wider, stride, expansion, rectified))
            for _ in range(count - 1):
                blocks.append(InvertedResidual(wider, wider, 1, expansion, rectified))
            width = wider
        parts[f"stage{number}"] = nn.Sequential(*(first if number == 1 else []), *blocks)
        norms[f"stage{number}"] = blocks[-1].bn
    pool: list[nn.Module] = [rectified(nn.Conv2d(width, WIDE, 1, bias=False))] if wide else []
    width = WIDE if wide else width
    pool += [nn.Conv2d(width, width, kernel, groups=width, bias=False), nn.BatchNorm2d(width)]
    if embedding:
        pool += [nn.Conv2d(width, embedding, 1, bias=False), nn.BatchNorm2d(embedding)]
        width = embedding
    parts["pool"] = nn.Sequential(*pool, nn.Flatten())
    parts["classifier"] = nn.Linear(width, classes)
    network = in_order(parts, norms)
    he_normal(network)
    return network
