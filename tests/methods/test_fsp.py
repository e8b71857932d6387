"""The flow of solution procedure: golden value, formula, and what its prelude trains."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.fsp import FSP, FSPInit, flow, flow_loss
from raykd.models import build, measure
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, golden_maps

MAPS = golden_maps()


def shapes(*widths):
    names = ["stem", *(f"stage{number}" for number in range(1, len(widths)))]
    return Shapes(10, 64, {name: (k, 8, 8) for name, k in zip(names, widths, strict=True)})


def test_the_loss_has_its_golden_value():
    loss = flow_loss((MAPS["fs"], MAPS["gs1"]), (MAPS["ft3"], MAPS["gt1"]))
    assert loss.item() == pytest.approx(0.0148625549, rel=1e-6)


def test_a_flow_is_the_formula_channel_by_channel():
    shallow, deep = MAPS["fs"], MAPS["gs1"]
    small = shallow.reshape(4, 3, 2, 2, 2, 2).mean((3, 5))
    for n in range(4):
        for k in range(3):
            for c in range(4):
                expected = (small[n, k] * deep[n, c]).mean()
                torch.testing.assert_close(flow(shallow, deep)[n, k, c], expected)
    torch.testing.assert_close(flow(deep, shallow), flow(shallow, deep).mT)


def test_a_pair_of_spots_is_named_by_the_deeper_one():
    logits = torch.zeros(4, 10, dtype=torch.float64)
    student = {"stem": MAPS["a8"], "stage1": MAPS["fs"], "stage2": MAPS["gs1"]}
    teacher = {"stem": MAPS["ft8"], "stage1": MAPS["ft3"], "stage2": MAPS["gt1"], "stage3": logits}
    losses = FSPInit().losses(
        Outputs(logits, student), Outputs(logits, teacher), batch(4), torch.nn.ModuleDict()
    )
    assert list(losses) == ["stage1", "stage2"]
    assert losses["stage2"].item() == pytest.approx(50 * 0.0148625549, rel=1e-6)


def test_the_prelude_trains_every_stage_and_nothing_else():
    prelude = FSP(weight=7.0, init_epochs=5).prelude()
    assert (prelude.method, prelude.epochs, prelude.lr) == (FSPInit(weight=7.0), 5, None)
    student, teacher = build("resnet8", 10), build("resnet14", 10).eval().requires_grad_(False)
    helpers = prelude.method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    learner = Learner(student, prelude.method, helpers)
    losses, _ = learner(batch(), teacher.outputs(batch().pixels, Signal.FEATURES), 0.0)
    sum(losses.values()).backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == ("classifier" in name), name


def test_afterwards_the_method_has_no_loss_of_its_own():
    method = FSP()
    assert method.needs() == Signal(0)
    assert len(method.helpers(shapes(3, 3, 4), shapes(3, 3, 4))) == 0
    nothing = Outputs(torch.zeros(4, 10))
    assert method.losses(nothing, nothing, batch(4), torch.nn.ModuleDict()) == {}


@each("method", [FSP(), FSPInit()])
def test_networks_that_do_not_suit_are_refused(method):
    with pytest.raises(ConfigError, match="at 'stage1' the student has 3 and the teacher 4"):
        method.helpers(shapes(3, 3), shapes(3, 4))
    with pytest.raises(ConfigError, match="student's 'stage2' has no partner"):
        method.helpers(shapes(3, 3, 4), shapes(3, 3))
    with pytest.raises(ConfigError, match="none in common"):
        method.helpers(Shapes(10, 64, {}), shapes(3, 3))
