"""Margins between faces: what a head makes of the cosine of an embedding with its own class.

All take cosines and change that of the label alone. Norms are those of the embeddings. Losses are
in full precision.

Shapes: B batch, C classes.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Head = Literal["normface", "arcface", "cosface", "combined", "sphereface", "adaface", "magface"]
Plain = Literal["arcface", "cosface"]
Beyond = Literal["fallback", "clamp", "none"]
Gradient = Literal["through", "identity"]

# arcface's and cosface's of insightface, adaface's of its authors; AdaDistill's cosface has 0.35.
MARGINS: dict[Head, float] = {"arcface": 0.5, "cosface": 0.4, "adaface": 0.4, "sphereface": 4.0}
_EDGE = 1e-7  # distance of a cosine from 1, where the angle's slope is infinite
ADAFACE_H = 0.333  # part of a deviation of the norms that fills half of the margin's range
ADAFACE_EDGE = 1e-3  # radians
MAGFACE_NORMS, MAGFACE_MARGINS = (10.0, 110.0), (0.45, 0.80)
MAGFACE_WEIGHT = 35.0


def with_target(cosine: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Cosines [B, C] with other values [B] at the labels (int64 [B])."""
    return cosine.scatter(1, labels[:, None], target[:, None])


def target_of(cosine: Tensor, labels: Tensor) -> Tensor:
    """The cosines [B] at the labels, a little off 1 and -1."""
    chosen = cosine.gather(1, labels[:, None]).squeeze(1)
    return chosen.clamp(-1 + _EDGE, 1 - _EDGE)


def angular(
    target: Tensor,
    margin: float | Tensor,
    beyond: Beyond = "fallback",
    gradient: Gradient = "through",
    factor: float = 1.0,
) -> Tensor:
    """cos(factor theta + margin) of cosines [B] (ArcFace, Deng et al. 2019, arXiv 1801.07698).

    `beyond`: where the sum is above pi, cos theta - a sin a (`fallback`, as most implementations,
    where a is the margin), -1 (`clamp`, as AdaFace's), or the cosine, which rises again (`none`, as
    insightface's). With a factor, a is what factor and margin add to the angle where the sum is pi:
    our choice, by which the fallback still falls with the angle. `gradient: identity` has the
    values, and a slope of 1 in the cosine, as insightface's ArcFace has, whose margin is computed
    without a graph.
    """
    added = margin if isinstance(margin, Tensor) else target.new_full((), margin)
    if factor == 1:
        value = target * added.cos() - (1 - target.square()).sqrt() * added.sin()
    else:
        value = (factor * target.acos() + added).cos()
        added = math.pi - (math.pi - added) / factor
    if beyond != "none":
        other = target - added * added.sin()
        other = other if beyond == "fallback" else -torch.ones_like(target)
        value = torch.where(target > -added.cos(), value, other)
    return value if gradient == "through" else target + (value - target).detach()


def margin_loss(
    cosine: Tensor, labels: Tensor, margin: float | Tensor, scale: float, form: Plain = "arcface"
) -> Tensor:
    """Cross entropy of scale * cosines [B, C] with a margin at the labels, in nats; 0 for no rows.

    ArcFace's, with cos theta - m sin m where theta + m is above pi, or CosFace's; one margin, or
    one each [B].
    """
    target = target_of(cosine, labels)
    harder = target - margin if form == "cosface" else angular(target, margin)
    logits = scale * with_target(cosine, labels, harder)
    return F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))


def sphereface(target: Tensor, blend: float | Tensor) -> Tensor:
    """(blend cos theta + phi) / (1 + blend) of cosines [B], phi = (-1)**k cos(4 theta) - 2 k.

    A-softmax (Liu et al. 2017, arXiv 1704.08063) with its margin of 4 and k = floor(4 theta / pi),
    at most 3. The blend falls from 1500 to 5, as 1500 / (1 + 0.1 step), in a public implementation.
    """
    square = target.square()
    turns = (4 * target.detach().acos() / math.pi).floor().clamp_max(3)
    phi = (1 - 2 * (turns % 2)) * (8 * square * (square - 1) + 1) - 2 * turns
    return (blend * target + phi) / (1 + blend)


def adaface(target: Tensor, norms: Tensor, mean: Tensor, deviation: Tensor, m: float) -> Tensor:
    """cos(theta - m z) - (m + m z) of cosines [B]; z says how large a norm is, from -1 to 1.

    Kim et al. 2022, arXiv 2204.00964. `norms` [B] carry no gradient; their mean and deviation are
    scalars.
    """
    z = (ADAFACE_H * (norms - mean) / (deviation + 1e-3)).clamp(-1, 1).detach()
    angle = (target.acos() - m * z).clamp(ADAFACE_EDGE, math.pi - ADAFACE_EDGE)
    return angle.cos() - (m + m * z)


def adaface_norms(norms: Tensor) -> Tensor:
    """Norms [B] as AdaFace counts them: from 0.001 to 100, without a gradient."""
    return norms.detach().clamp(1e-3, 100)


def magface_margin(norms: Tensor) -> tuple[Tensor, Tensor]:
    """The margins [B] of embeddings of some norms [B], and MagFace's regulariser, a scalar.

    Meng et al. 2021, arXiv 2103.06627; the regulariser falls with the norm, and so pulls it up. The
    easy margin of its code, which leaves angles above a right one as they are, is not offered.
    """
    low, high = MAGFACE_NORMS
    least, most = MAGFACE_MARGINS
    norms = norms.clamp(low, high)
    margins = least + (most - least) / (high - low) * (norms - low)
    return margins, (norms / high**2 + 1 / norms).mean()
