"""Hints: one stage of the student predicts one of the teacher's."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods.feature_maps import Regressor
from raykd.methods.fitnet import FitNet
from tests.each import each
from tests.small import batch, golden_maps

MAPS = golden_maps()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)


def shapes(**features):
    return Shapes(10, 64, features)


def test_the_loss_is_the_weighted_mean_squared_error_of_the_regressor():
    method = FitNet(weight=3.0)
    student, teacher = shapes(stage2=(3, 8, 8)), shapes(stage2=(5, 4, 4))
    helpers = method.helpers(student, teacher).double()
    student = Outputs(LOGITS, {"stage2": MAPS["a8"]})
    teacher = Outputs(LOGITS, {"stage2": MAPS["ft"]})
    loss = method.losses(student, teacher, batch(4), helpers)["stage2"]
    fit, norm, _ = helpers["regressor"]
    guess = F.conv2d(MAPS["a8"], fit.weight, fit.bias, stride=2, padding=1)
    mean, variance = guess.mean((0, 2, 3)), guess.var((0, 2, 3), correction=0)
    guess = (guess - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    expected = 3.0 * (guess.clamp_min(0) - MAPS["ft"]).square().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_the_regressor_meets_every_size():
    for sides in [(8, 8), (8, 4), (4, 8), (7, 4), (4, 7), (3, 9)]:
        mine, theirs = (3, sides[0], sides[0]), (5, sides[1], sides[1])
        helpers = FitNet().helpers(shapes(stage2=mine), shapes(stage2=theirs))
        assert isinstance(helpers["regressor"], Regressor)
        assert helpers["regressor"](torch.randn(2, *mine)).shape == (2, *theirs)


@pytest.mark.slow
def test_the_regressor_meets_every_size_of_pictures_that_are_not_square():
    for theirs in [(1, 4), (1, 2), (4, 6), (8, 4), (4, 4), (2, 2)]:
        for mine in [(1, 2), (1, 4), (4, 4), (4, 8), (3, 5), (1, 3)]:
            helpers = FitNet().helpers(shapes(stage2=(3, *mine)), shapes(stage2=(5, *theirs)))
            assert helpers["regressor"](torch.randn(2, 3, *mine)).shape == (2, 5, *theirs)


@pytest.mark.slow
def test_another_stage_may_be_asked_for():
    method = FitNet(stage="stem")
    helpers = method.helpers(shapes(stem=(3, 4, 4)), shapes(stem=(5, 4, 4))).double()
    student = Outputs(LOGITS, {"stem": MAPS["fs"]})
    losses = method.losses(student, Outputs(LOGITS, {"stem": MAPS["ft"]}), batch(4), helpers)
    assert list(losses) == ["stem"]


@each("features", [{}, {"stem": (3, 8, 8), "stage1": (3, 8, 8)}])
def test_a_network_without_the_stage_is_refused(features):
    there = shapes(stage2=(3, 4, 4))
    for pair in ((shapes(**features), there), (there, shapes(**features))):
        with pytest.raises(ConfigError, match="reads the stage 'stage2'"):
            FitNet().helpers(*pair)
