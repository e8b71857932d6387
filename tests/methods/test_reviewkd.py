"""Knowledge review: the hierarchical loss, and how maps are fused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Shapes
from raykd.methods.reviewkd import Fusion, ReviewKD, hierarchical_loss
from raykd.models import measure
from tests.each import each
from tests.small import batch, golden_maps, pair

MAPS = golden_maps()


@each(
    ("student", "teacher", "expected"),
    [("a8", "ft8", 1.240518282), ("fs", "ft3", 1.145689418)],
)
def test_the_loss_has_its_golden_value(student, teacher, expected):
    loss = hierarchical_loss(MAPS[student], MAPS[teacher])
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_the_formula_size_by_size():
    gap = MAPS["a8"] - MAPS["ft8"]  # averaging is linear
    sides = {8: 1.0, 4: 0.5, 2: 0.25, 1: 0.125}
    total = 0.0
    for side, weight in sides.items():
        cell = 8 // side
        pooled = gap.reshape(4, 3, side, cell, side, cell).mean((3, 5))
        total += weight * pooled.square().mean().item() / sum(sides.values())
    assert hierarchical_loss(MAPS["a8"], MAPS["ft8"]).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.slow
def test_the_loss_of_a_pixel_is_the_plain_error():
    student, teacher = MAPS["fs"][:, :, :1, :1], MAPS["ft3"][:, :, :1, :1]
    loss = hierarchical_loss(student, teacher)
    torch.testing.assert_close(loss, F.mse_loss(student, teacher))


def test_a_fusion_is_the_formula():
    torch.manual_seed(0)
    fusion = Fusion((3, 4, 4), (5, 8, 8), 2, deepest=False).double().eval()
    guess, fused = fusion(MAPS["fs"], MAPS["gs1"][:, :2])
    scale = 1 / (1 + 1e-5) ** 0.5  # of a batch norm that has seen nothing
    x = scale * torch.einsum("nkhw,mk->nmhw", MAPS["fs"], fusion.enter[0].weight[:, :, 0, 0])
    deeper = MAPS["gs1"][:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    weight, bias = fusion.attend.weight[:, :, 0, 0], fusion.attend.bias[:, None, None]
    both = torch.cat([x, deeper], 1)
    shares = torch.sigmoid(torch.einsum("nkhw,mk->nmhw", both, weight) + bias)
    expected = x * shares[:, 0][:, None] + deeper * shares[:, 1][:, None]
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fused, expected)
    expected = scale * F.conv2d(expected, fusion.leave[0].weight, padding=1)
    torch.testing.assert_close(guess, expected)


@pytest.mark.slow
def test_spots_are_guessed_from_the_deepest_on_each_from_the_one_below():
    student, teacher = pair()
    method = ReviewKD(weight=3.0, warmup_epochs=0)
    helpers = method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    assert list(helpers) == ["embedding", "stage3", "stage2", "stage1"]
    mine = student.outputs(batch().pixels, method.needs())
    theirs = teacher.outputs(batch().pixels, method.needs())
    losses = method.losses(mine, theirs, batch(), helpers)
    guess, fused = helpers["embedding"](mine.embedding[..., None, None], None)
    expected = {"embedding": 3 * F.mse_loss(guess[..., 0, 0], theirs.embedding)}
    for stage in ("stage3", "stage2", "stage1"):
        guess, fused = helpers[stage](mine.features[stage], fused)
        expected[stage] = 3 * hierarchical_loss(guess, theirs.features[f"{stage}.pre"])
    torch.testing.assert_close(dict(losses), expected)


@pytest.mark.slow
def test_the_weight_warms_up():
    student, teacher = pair()
    method = ReviewKD(warmup_epochs=4)
    helpers = method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    mine = student.outputs(batch().pixels, method.needs())
    theirs = teacher.outputs(batch().pixels, method.needs())
    with torch.no_grad():
        first, second, full, later = (
            method.losses(mine, theirs, replace(batch(), epoch=epoch), helpers)["stage2"].item()
            for epoch in (0, 1, 3, 9)
        )
    assert [first, second, later] == pytest.approx([full / 4, full / 2, full])


@pytest.mark.slow
def test_networks_may_differ_in_their_numbers_of_stages_and_sizes():
    student = Shapes(10, 700, {"stage1": (3, 8, 8), "stage2": (4, 4, 4), "stage3": (6, 2, 2)})
    teacher = Shapes(10, 20, {"stage1": (5, 4, 4), "stage2": (7, 8, 8)})
    helpers = ReviewKD().helpers(student, teacher)
    assert list(helpers) == ["embedding", "stage2", "stage1"]
    guess, fused = helpers["embedding"](torch.randn(2, 700, 1, 1), None)
    assert (guess.shape, fused.shape) == ((2, 20, 1, 1), (2, 512, 1, 1))
    guess, fused = helpers["stage2"](torch.randn(2, 4, 4, 4), fused)
    assert (guess.shape, fused.shape) == ((2, 7, 8, 8), (2, 512, 8, 8))
    guess, fused = helpers["stage1"](torch.randn(2, 3, 8, 8), fused)
    assert (guess.shape, fused.shape) == ((2, 5, 4, 4), (2, 512, 4, 4))
