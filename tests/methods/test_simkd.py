"""SimKD: the projector, the teacher's classifier, and a student that answers with both."""

import pytest
import torch
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods.simkd import Projector, SimKD
from raykd.models import measure
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, golden_maps, pair

MAPS = golden_maps()
NEEDS = SimKD().needs()


def ready(method=None):
    """A student, a teacher, both their outputs and the calibrated helpers."""
    student, teacher = pair()
    method = method or SimKD()
    helpers = method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    assert method.needs_calibration(helpers)
    theirs = teacher.outputs(batch().pixels, NEEDS)
    method.calibrate(helpers, iter([theirs]))
    assert not method.needs_calibration(helpers)
    return student, teacher, student.outputs(batch().pixels, NEEDS), theirs, helpers


def test_the_loss_is_the_weighted_mean_squared_error_of_the_projected_map():
    _, _, mine, theirs, helpers = ready()
    losses = SimKD(weight=3.0).losses(mine, theirs, batch(), helpers)
    projected = helpers["projector"](mine.features["stage3"])
    expected = 3 * (projected - theirs.features["stage3"]).square().mean()
    torch.testing.assert_close(dict(losses), {"stage3": expected})


@each(("mine", "theirs"), [("fs", "ft8"), ("a8", "ft")])
def test_the_larger_map_is_averaged_down(mine, theirs):
    shapes = [Shapes(10, len(MAPS[n][0]), {"stage1": MAPS[n].shape[1:]}) for n in (mine, theirs)]
    helpers = SimKD().helpers(*shapes).double()
    logits = torch.zeros(4, 10, dtype=torch.float64)
    student = Outputs(logits, {"stage1": MAPS[mine]})
    teacher = Outputs(logits, {"stage1": MAPS[theirs]})
    loss = SimKD().losses(student, teacher, batch(4), helpers)["stage1"]
    small = {n: m if m.shape[2] == 4 else nn.functional.avg_pool2d(m, 2) for n, m in MAPS.items()}
    expected = (helpers["projector"].layers(small[mine]) - small[theirs]).square().mean()
    torch.testing.assert_close(loss, expected)


def test_the_projector_is_narrow_in_the_middle():
    projector = Projector((3, 4, 4), (10, 4, 4), 5)
    convs = [part for part in projector.modules() if isinstance(part, nn.Conv2d)]
    assert [tuple(conv.weight.shape) for conv in convs] == [
        (5, 3, 1, 1), (5, 5, 3, 3), (10, 5, 1, 1)
    ]  # fmt: skip
    assert bool((projector(torch.randn(2, 3, 4, 4)) >= 0).all())


def test_the_student_answers_with_the_teachers_classifier():
    _, teacher, mine, theirs, helpers = ready()
    helpers.eval()
    pooled = helpers["projector"](mine.features["stage3"]).mean((2, 3))
    expected = teacher.classifier(pooled)
    for answer in (theirs, None, Outputs(theirs.logits)):
        torch.testing.assert_close(SimKD().scores(mine, answer, helpers), expected)


def test_a_perfect_projection_answers_as_the_teacher():
    _, _, _, theirs, helpers = ready()
    helpers["projector"] = nn.Identity()
    torch.testing.assert_close(SimKD().scores(theirs, None, helpers), theirs.logits)


def test_the_stages_and_the_projector_are_trained_and_no_classifier():
    student, _, _, theirs, helpers = ready()
    learner = Learner(student, SimKD(), helpers)
    losses, _ = learner(batch(), theirs, 0.0)
    assert losses.keys() == {"stage3"}
    losses["stage3"].backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == ("classifier" in name), name
        assert parameter.requires_grad != ("classifier" in name), name


def test_a_student_is_released_with_what_it_needs_to_answer():
    _, _, mine, _, helpers = ready()
    released = SimKD().releases(helpers)
    assert set(released) == {"projector", "classifier"}
    copy = SimKD().helpers(Shapes(10, 64, {"s": (64, 4, 4)}), Shapes(10, 256, {"s": (256, 4, 4)}))
    copy.load_state_dict(released.state_dict())
    assert not SimKD().needs_calibration(copy)
    scores = (SimKD().scores(mine, None, each.eval()) for each in (copy, released))
    torch.testing.assert_close(next(scores), next(scores), rtol=0, atol=0)


def test_a_teacher_that_does_more_than_average_is_refused():
    _, teacher, _, _, helpers = ready()
    vars(teacher)["pool"] = nn.Sequential(nn.BatchNorm2d(256), *teacher.pool)
    with pytest.raises(ConfigError, match="pools by BatchNorm2d, AdaptiveAvgPool2d, Flatten"):
        SimKD().calibrate(helpers, [teacher.outputs(batch().pixels, NEEDS)])
    with pytest.raises(ConfigError, match="makes an embedding of 1280"):
        SimKD().helpers(
            Shapes(10, 64, {"stage1": (64, 4, 4)}), Shapes(10, 1280, {"stage1": (320, 4, 4)})
        )


def test_a_teacher_without_a_linear_classifier_is_refused():
    _, teacher, _, theirs, helpers = ready()
    vars(teacher)["classifier"] = nn.Identity()
    with pytest.raises(ConfigError, match="classifies by Identity"):
        SimKD().calibrate(helpers, [theirs])
