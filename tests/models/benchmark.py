"""Forward passes of the CIFAR benchmark's networks, by the names that its own code gives.

A pass draws each parameter when it is used first, so it also lists the names and shapes of a
checkpoint (HobbitLong/RepDistiller, megvii-research/mdistiller).

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Parameters(dict[str, Tensor]):
    """Tensors by their names, drawn when they are asked for first."""

    def drawn(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            scale = 1 if len(shape) < 2 else (2 / (shape[0] * shape[-1] ** 2)) ** 0.5
            self[name] = torch.randn(shape) * scale + (len(shape) < 2)
        return self[name]

    def conv(self, x: Tensor, name: str, width: int, kernel: int, stride=1, groups=1, bias=False):
        weight = self.drawn(f"{name}.weight", width, x.shape[1] // groups, kernel, kernel)
        offset = self.drawn(f"{name}.bias", width) if bias else None
        return F.conv2d(x, weight, offset, stride, kernel // 2, groups=groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        width = x.shape[1]
        scale, shift = self.drawn(f"{name}.weight", width), self.drawn(f"{name}.bias", width)
        mean = self.drawn(f"{name}.running_mean", width)
        variance = self.drawn(f"{name}.running_var", width).abs_().add_(0.1)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, variance, scale, shift)

    def linear(self, x: Tensor, name: str, classes: int) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        weight = self.drawn(f"{name}.weight", classes, x.shape[1])
        return F.linear(x, weight, self.drawn(f"{name}.bias", classes))


def residual(x: Tensor, p: Parameters, at: str, width: int, stride: int, shortcut: str, inner=0):
    """A basic block, or a bottleneck with `inner` channels within."""
    y = x
    plan = [(inner, 1, 1), (inner, 3, stride), (width, 1, 1)] if inner else None
    plan = plan or [(width, 3, stride), (width, 3, 1)]
    for number, (channels, kernel, step) in enumerate(plan, start=1):
        y = p.norm(p.conv(y, f"{at}.conv{number}", channels, kernel, step), f"{at}.bn{number}")
        y = F.relu(y) if number < len(plan) else y
    if stride > 1 or x.shape[1] != width:
        x = p.norm(p.conv(x, f"{at}.{shortcut}.0", width, 1, stride), f"{at}.{shortcut}.1")
    return F.relu(y + x)


def resnet(depth: int, widths: tuple[int, ...]) -> Callable[[Tensor, Parameters], Tensor]:
    def forward(x: Tensor, p: Parameters) -> Tensor:
        x = F.relu(p.norm(p.conv(x, "conv1", widths[0], 3), "bn1"))
        for stage in (1, 2, 3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = residual(x, p, f"layer{stage}.{block}", widths[stage], stride, "downsample")
        return p.linear(x, "fc", 10)

    return forward


def four_stages(layers: tuple[int, ...], *, bottleneck: bool):
    def forward(x: Tensor, p: Parameters) -> Tensor:
        x = F.relu(p.norm(p.conv(x, "conv1", 64, 3), "bn1"))
        for stage, count in enumerate(layers, start=1):
            inner = 64 * 2 ** (stage - 1)
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                at = f"layer{stage}.{block}"
                if bottleneck:
                    x = residual(x, p, at, 4 * inner, stride, "shortcut", inner)
                else:
                    x = residual(x, p, at, inner, stride, "shortcut")
        return p.linear(x, "linear", 10)

    return forward


def wide(depth: int, factor: int):
    def forward(x: Tensor, p: Parameters) -> Tensor:
        x = p.conv(x, "conv1", 16, 3)
        for stage in (1, 2, 3):
            width = 16 * factor * 2 ** (stage - 1)
            for block in range((depth - 4) // 6):
                at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
                active = F.relu(p.norm(x, f"{at}.bn1"))
                y = F.relu(p.norm(p.conv(active, f"{at}.conv1", width, 3, stride), f"{at}.bn2"))
                y = p.conv(y, f"{at}.conv2", width, 3)
                equal = x.shape[1] == width
                x = y + (x if equal else p.conv(active, f"{at}.convShortcut", width, 1, stride))
        return p.linear(F.relu(p.norm(x, "bn1")), "fc", 10)

    return forward


def vgg(*counts: int):
    def forward(x: Tensor, p: Parameters) -> Tensor:
        for block, (width, count) in enumerate(zip((64, 128, 256, 512, 512), counts, strict=True)):
            x = F.max_pool2d(x, 2) if 0 < block < 4 else x
            for layer in range(count):
                at = f"block{block}.{3 * layer}", f"block{block}.{3 * layer + 1}"
                x = F.relu(p.norm(p.conv(x, at[0], width, 3, bias=True), at[1]))
        return p.linear(x, "classifier", 10)

    return forward


def mobilenet(factor: float, head: str):
    def forward(x: Tensor, p: Parameters) -> Tensor:
        def unit(x: Tensor, at: str, first: int, *conv: int) -> Tensor:
            return p.norm(p.conv(x, f"{at}.{first}", *conv), f"{at}.{first + 1}")

        x = F.relu(unit(x, "conv1", 0, int(32 * factor), 3, 2))
        rows = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
        rows += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        for row, (expansion, width, count, step) in enumerate(rows):
            for block in range(count):
                at, inner = f"blocks.{row}.{block}.conv", x.shape[1] * expansion
                stride, out = step if block == 0 else 1, int(width * factor)
                y = F.relu(unit(x, at, 0, inner, 1))
                y = F.relu(unit(y, at, 3, inner, 3, stride, inner))
                y = unit(y, at, 6, out, 1)
                x = x + y if stride == 1 and x.shape[1] == out else y
        return p.linear(F.relu(unit(x, "conv2", 0, 1280, 1)), head, 10)

    return forward


def dealt(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def shuffle_1(x: Tensor, p: Parameters) -> Tensor:
    x = F.relu(p.norm(p.conv(x, "conv1", 24, 1), "bn1"))
    for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(count):
            at, groups = f"layer{stage}.{block}", 1 if x.shape[1] == 24 else 3
            branch = width - x.shape[1] if block == 0 else width
            y = F.relu(p.norm(p.conv(x, f"{at}.conv1", branch // 4, 1, 1, groups), f"{at}.bn1"))
            stride = 2 if block == 0 else 1
            y = p.conv(dealt(y, groups), f"{at}.conv2", branch // 4, 3, stride, branch // 4)
            y = p.conv(F.relu(p.norm(y, f"{at}.bn2")), f"{at}.conv3", branch, 1, 1, 3)
            y = p.norm(y, f"{at}.bn3")
            x = F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if block == 0 else x + y)
    return p.linear(x, "linear", 10)


def shuffle_2(x: Tensor, p: Parameters) -> Tensor:
    x = F.relu(p.norm(p.conv(x, "conv1", 24, 1), "bn1"))
    for stage, (width, count) in enumerate(((116, 4), (232, 8), (464, 4)), start=1):
        half = width // 2
        for block in range(count):
            at, stride, first = f"layer{stage}.{block}", 1, 1
            left, right = x.chunk(2, 1)
            if block == 0:
                stride, first, left, right = 2, 3, x, x
                left = p.norm(p.conv(x, f"{at}.conv1", x.shape[1], 3, 2, x.shape[1]), f"{at}.bn1")
                left = F.relu(p.norm(p.conv(left, f"{at}.conv2", half, 1), f"{at}.bn2"))
            y = F.relu(p.norm(p.conv(right, f"{at}.conv{first}", half, 1), f"{at}.bn{first}"))
            y = p.conv(y, f"{at}.conv{first + 1}", half, 3, stride, half)
            y = p.conv(p.norm(y, f"{at}.bn{first + 1}"), f"{at}.conv{first + 2}", half, 1)
            x = dealt(torch.cat([left, F.relu(p.norm(y, f"{at}.bn{first + 2}"))], 1), 2)
    return p.linear(F.relu(p.norm(p.conv(x, "conv2", 1024, 1), "bn2")), "linear", 10)


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
FORWARD: dict[str, Callable[[Tensor, Parameters], Tensor]] = {
    "resnet8": resnet(8, NARROW),
    "resnet20": resnet(20, NARROW),
    "resnet110": resnet(110, NARROW),
    "resnet32x4": resnet(32, WIDE),
    "cifar_resnet18": four_stages((2, 2, 2, 2), bottleneck=False),
    "cifar_resnet50": four_stages((3, 4, 6, 3), bottleneck=True),
    "wrn_16_1": wide(16, 1),
    "wrn_40_2": wide(40, 2),
    "vgg8": vgg(1, 1, 1, 1, 1),
    "vgg13": vgg(2, 2, 2, 2, 2),
    "mobilenet_v2_x0_5": mobilenet(0.5, "classifier.0"),
    "mobilenet_v2_x1_0": mobilenet(1.0, "classifier"),
    "shufflenet_v1": shuffle_1,
    "shufflenet_v2": shuffle_2,
}
