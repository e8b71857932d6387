"""VGG networks for small images, vgg8 to vgg19, with batch norms and one linear layer at the end.

Simonyan & Zisserman 2015 (arXiv 1409.1556), as the CRD benchmark has them (Tian et al. 2020,
arXiv 1910.10699). Depth counts the convolutions and the three linear layers of the original.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.models.staged import Rectified, Staged, he_normal, in_order

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth -> of each stage
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class PoolLarge(nn.Module):
    """Max pooling of the maps that are at least 8 pixels high, as after images of 64 x 64.

    The rule of spot-adaptive distillation's code (Song et al. 2022, arXiv 2205.02399).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] -> [B, K, H / 2, W / 2], or the same map where H < 8."""
        return F.max_pool2d(x, 2) if x.shape[2] >= 8 else x


def vgg(depth: int, classes: int) -> Staged:
    """A network of plain 3x3 convolutions; stages: stem, stage1, ..., stage4.

    A stage begins with the pooling of the map before it, and ends in a ReLU. Convolutions start
    from He's normal distribution over the fan out, the classifier from N(0, 0.01**2), biases
    from 0, batch norms from 1 and 0.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    norms: dict[str, nn.BatchNorm2d] = {}
    width_in = 3
    for number, (width, count) in enumerate(zip(WIDTHS, CONVOLUTIONS[depth], strict=True)):
        name = f"stage{number}" if number else "stem"
        stage: list[nn.Module] = []
        if number:
            stage.append(PoolLarge() if number == 4 else nn.MaxPool2d(2))
        for index in range(count):
            norms[name] = nn.BatchNorm2d(width)
            stage += [nn.Conv2d(width if index else width_in, width, 3, 1, 1), norms[name]]
            if index < count - 1:
                stage.append(nn.ReLU(inplace=True))
        parts[name] = Rectified(*stage)
        width_in = width
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = classifier = nn.Linear(WIDTHS[-1], classes)
    network = in_order(parts, norms)
    he_normal(network)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return network
