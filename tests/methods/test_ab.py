"""Activation boundaries: golden value, formula, and what the prelude trains."""

import pytest
import torch
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.ab import AB, SCALE, ABInit, boundary_loss
from raykd.models import build, measure
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, golden_maps, pair

MAPS = golden_maps()


def shapes(*stages):
    return Shapes(10, 64, {f"stage{n}": shape for n, shape in enumerate(stages, start=1)})


def test_the_loss_has_its_golden_value():
    loss = SCALE * boundary_loss(MAPS["fs5"], MAPS["ft"])
    assert loss.item() == pytest.approx(0.5484767006, rel=1e-6)


def test_the_loss_is_the_formula_neuron_by_neuron():
    total = 0.0
    student, teacher = 2 * MAPS["fs5"], MAPS["ft"]
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if s > -1.5 and t <= 0:
            total += (s + 1.5) ** 2
        if s <= 1.5 and t > 0:
            total += (s - 1.5) ** 2
    assert boundary_loss(student, teacher, 1.5).item() == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.slow
def test_each_stage_counts_twice_as_much_as_the_one_before():
    shape = shapes((5, 4, 4), (5, 4, 4), (5, 4, 4))
    method = ABInit(weight=3.0)
    helpers = method.helpers(shape, shape)
    logits = torch.zeros(4, 10, dtype=torch.float64)
    mine = Outputs(logits, {f"{name}.pre": MAPS["fs5"] for name in shape.features})
    theirs = Outputs(logits, {f"{name}.pre": MAPS["ft"] for name in shape.features})
    losses = method.losses(mine, theirs, batch(4), helpers)
    expected = [3 * 0.5484767006 * share for share in (0.25, 0.5, 1.0)]
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-6)
    assert list(losses) == ["stage1", "stage2", "stage3"]


@pytest.mark.slow
def test_a_connector_is_there_only_where_shapes_differ():
    student = shapes((3, 8, 8), (5, 4, 4), (3, 4, 4))
    teacher = shapes((5, 4, 4), (5, 4, 4), (5, 4, 4), (9, 2, 2))
    helpers = ABInit().helpers(student, teacher)
    kinds = [isinstance(helper, nn.Identity) for helper in helpers.values()]
    assert kinds == [False, True, False]
    assert helpers["stage1"](torch.randn(2, 3, 8, 8)).shape == (2, 5, 4, 4)
    assert not any(isinstance(part, nn.ReLU) for part in helpers.modules())


@pytest.mark.slow
def test_the_prelude_trains_every_stage_the_connectors_and_nothing_else():
    prelude = AB(weight=2.0, margin=0.5, init_epochs=5).prelude()
    assert prelude.method == ABInit(weight=2.0, margin=0.5)
    assert (prelude.epochs, prelude.lr) == (5, None)
    student, teacher = pair()
    helpers = prelude.method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    learner = Learner(student, prelude.method, helpers)
    losses, _ = learner(batch(), teacher.outputs(batch().pixels, Signal.PREACTIVATIONS), 0.0)
    sum(losses.values()).backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == ("classifier" in name), name


@pytest.mark.slow
def test_afterwards_the_method_has_no_loss_of_its_own():
    method = AB()
    assert method.needs() == Signal(0)
    assert len(method.helpers(shapes((3, 8, 8)), shapes((5, 4, 4)))) == 0
    nothing = Outputs(torch.zeros(4, 10))
    assert method.losses(nothing, nothing, batch(4), nn.ModuleDict()) == {}


@each("method", [AB(), ABInit()])
def test_networks_that_do_not_suit_are_refused(method):
    with pytest.raises(ConfigError, match="student's 'stage2' has no partner"):
        method.helpers(shapes((3, 8, 8), (3, 4, 4)), shapes((5, 4, 4)))
    with pytest.raises(ConfigError, match="none in common"):
        method.helpers(Shapes(10, 64, {}), shapes((5, 4, 4)))


@pytest.mark.slow
@each(("model", "moves"), [("wrn_16_1", True), ("resnet8", False)])
def test_the_norm_behind_a_wide_network_s_last_stage_can_stay_in_evaluation(model, moves):
    torch.manual_seed(0)
    student, teacher = build(model, 10), build("wrn_16_2", 10).eval()
    shape = measure(student, (16, 16)), measure(teacher, (16, 16))
    known = teacher.outputs(batch().pixels, Signal.PREACTIVATIONS)
    found = []
    for settled in (False, True):
        method = AB(settled_norm=settled).prelude().method
        torch.manual_seed(1)
        learner = Learner(student, method, method.helpers(*shape)).train()
        before = {name: tensor.clone() for name, tensor in student.pool.state_dict().items()}
        found.append(learner(batch(), known, 0.0)[0])
        after = student.pool.state_dict()
        changed = any(not torch.equal(after[name], tensor) for name, tensor in before.items())
        assert changed == (moves and not settled)
        student.pool.load_state_dict(before)
        assert learner.train().student.stages["stage2"].training
    for stage in ("stage1", "stage2"):
        assert torch.equal(found[0][stage], found[1][stage])
    assert torch.equal(found[0]["stage3"], found[1]["stage3"]) != moves
    if moves:  # the norm as it was made: mean 0 and variance 1
        student.train()
        with torch.no_grad():
            x = batch().pixels
            for stage in student.stages.values():
                x = stage(x)
            norm = student.norms["stage3"]
            plain = x / (1 + norm.eps) ** 0.5
            torch.manual_seed(1)
            connector = AB().prelude().method.helpers(*shape)["stage3"].train()
            expected = 0.003 * boundary_loss(connector(plain), known.features["stage3.pre"])
        torch.testing.assert_close(found[1]["stage3"], expected)
