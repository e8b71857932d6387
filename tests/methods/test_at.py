"""Attention transfer: golden values and the naive formula."""

import math

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods.at import AT, attention_loss
from raykd.methods.feature_maps import match_sizes
from tests.each import each
from tests.small import batch, golden_maps

MAPS = golden_maps()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)


@each(("teacher", "expected"), [("ft", 0.01146807948), ("ft8", 0.02021255696)])
def test_the_loss_has_its_golden_value(teacher, expected):
    loss = attention_loss(MAPS["fs"], MAPS[teacher])
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_the_formula_pixel_by_pixel():
    def attention(sample):
        sums = [sum(c[h][w].item() ** 2 for c in sample) for h in range(4) for w in range(4)]
        return [value / math.sqrt(sum(x * x for x in sums)) for value in sums]

    total = 0.0
    for mine, theirs in zip(MAPS["fs"], MAPS["ft"], strict=True):
        pairs = zip(attention(mine), attention(theirs), strict=True)
        total += sum((a - b) ** 2 for a, b in pairs) / 16
    assert attention_loss(MAPS["fs"], MAPS["ft"]).item() == pytest.approx(total / 4, rel=1e-12)


def test_one_weighted_loss_per_stage_that_both_have():
    student = {"stem": MAPS["a8"], "stage1": MAPS["a8"], "stage2": MAPS["fs"]}
    teacher = {"stem": MAPS["a8"], "stage1": MAPS["ft"], "stage2": MAPS["ft"], "stage3": LOGITS}
    losses = AT(weight=10.0).losses(
        Outputs(LOGITS, student), Outputs(LOGITS, teacher), batch(4), AT().helpers(*pair(2, 3))
    )
    assert list(losses) == ["stage1", "stage2"]
    torch.testing.assert_close(losses["stage2"], 10 * attention_loss(MAPS["fs"], MAPS["ft"]))


def test_maps_of_zeros_give_no_loss_and_no_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_loss(student, torch.zeros(2, 5, 4, 4))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@each(
    ("mine", "theirs", "size"),
    [((1, 4), (1, 2), (1, 2)), ((4, 3), (4, 4), (4, 3)), ((2, 8), (4, 4), (2, 4))],
)
def test_maps_of_pictures_that_are_not_square_meet_at_the_smaller_sides(mine, theirs, size):
    student, teacher = match_sizes(torch.ones(2, 3, *mine), torch.ones(2, 5, *theirs))
    assert student.shape == (2, 3, *size) and teacher.shape == (2, 5, *size)
    assert attention_loss(torch.randn(2, 3, *mine), torch.randn(2, 5, *theirs)) > 0


def test_networks_without_common_stages_are_refused():
    with pytest.raises(ConfigError, match="none in common"):
        AT().helpers(Shapes(10, 64, {}), pair(2, 3)[1])


def pair(*stages):
    """Shapes of networks with so many stages."""
    return [
        Shapes(10, 64, {"stem": (3, 8, 8)} | {f"stage{n + 1}": (3, 4, 4) for n in range(count)})
        for count in stages
    ]
