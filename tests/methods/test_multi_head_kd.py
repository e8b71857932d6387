"""Multi-head distillation: its formula, the heads, and the prelude that trains the teacher's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.columns import modules_of, shapes_of_columns, with_columns
from raykd.methods.kd import KD
from raykd.methods.multi_head_kd import MultiHeadKD, TeacherHeads
from raykd.methods.stage_heads import HEAD_LOGITS, HeadLogits, head_of
from raykd.models import measure
from raykd.training.learner import Learner
from tests.small import ALL, batch, golden_logits, helpers_of, outputs_of, pair

LINEAR = MultiHeadKD(head="linear")


def asked(method, networks=None):
    """The outputs of both networks, and the student's heads."""
    student, teacher = networks or pair()
    torch.manual_seed(1)
    helpers = helpers_of(method, student, teacher)
    theirs = outputs_of(teacher, batch(), method.needs(), method.derived())
    return outputs_of(student, batch(), ALL), theirs, helpers


def kl(teacher, student, temperature):
    p, q = ((z / temperature).softmax(1) for z in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def test_the_losses_are_the_formula():
    method = MultiHeadKD(weight=0.7, head_weight=0.3, temperature=3.0)
    z_s, z_t, labels = golden_logits()
    h_s, h_t = z_s.flip(1), z_t.roll(1, 1)
    sample = batch(4)
    sample = type(sample)(sample.pixels, labels, sample.ids, 0, 0)
    maps = {"stage1": h_s[:, :, None, None], "stage2": h_s[:, :, None, None]}
    teacher = Outputs(z_t, derived={f"stage1{HEAD_LOGITS}": h_t})
    losses = method.losses(
        Outputs(z_s, maps), teacher, sample, nn.ModuleDict({"stage1": nn.Flatten()})
    )
    cross_entropy = -h_s.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(losses["stage1"], 0.3 * (cross_entropy + kl(h_t, h_s, 3.0)))
    torch.testing.assert_close(losses["logits"], 0.7 * kl(z_t, z_s, 3.0))
    assert [*losses] == ["stage1", "logits"]


def test_mixed_targets_weigh_both_classes():
    mine, theirs, heads = asked(LINEAR)
    sample = batch()
    soft = 0.25 * F.one_hot(sample.targets, 10) + 0.75 * F.one_hot(sample.targets.roll(1), 10)
    found = [
        LINEAR.losses(mine, theirs, type(sample)(sample.pixels, y, sample.ids, 0, 0), heads)
        for y in (soft, sample.targets, sample.targets.roll(1))
    ]
    for stage in ("stage1", "stage2"):
        expected = 0.25 * found[1][stage] + 0.75 * found[2][stage]
        torch.testing.assert_close(found[0][stage], expected)


def test_without_heads_it_is_kd():
    method = MultiHeadKD(head_weight=0.0, head="linear", temperature=2.0)
    mine, theirs, heads = asked(method)
    kd = KD(weight=1.0, temperature=2.0).losses(mine, theirs, batch(), nn.ModuleDict())
    losses = method.losses(mine, theirs, batch(), heads)
    assert torch.equal(losses["logits"], kd["logits"])
    assert losses["stage1"] == losses["stage2"] == 0
    assert method.label_weight == 1.0


@pytest.mark.parametrize("head", ["conv", "linear"])
def test_a_student_that_is_its_teacher_with_its_heads_has_the_labels_loss_alone(head):
    method = MultiHeadKD(head=head)
    _, teacher = pair()
    mine, theirs, heads = asked(method, (teacher, teacher))
    heads.eval()
    copied = copy.deepcopy(heads)
    known = {f"{s}{HEAD_LOGITS}": copied[s](mine.features[s]) for s in ("stage1", "stage2")}
    losses = method.losses(mine, theirs.replace(derived=known), batch(), heads)
    assert losses["logits"].abs() < 1e-6
    for stage in ("stage1", "stage2"):
        label = F.cross_entropy(known[stage + HEAD_LOGITS], batch().targets)
        torch.testing.assert_close(losses[stage], 0.5 * label)


def test_the_prelude_trains_the_heads_and_leaves_the_teacher_as_it_was():
    _, teacher = pair()
    prelude = MultiHeadKD(head_epochs=3).prelude()
    assert (prelude.method, prelude.epochs, prelude.lr) == (TeacherHeads(), 3, 0.01)
    torch.manual_seed(0)
    helpers = helpers_of(prelude.method, teacher, teacher)
    learner = Learner(copy.deepcopy(teacher), prelude.method, helpers)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(helpers.parameters(), lr=0.1)
    history = []
    for _ in range(5):
        theirs = teacher.outputs(batch().pixels, prelude.method.needs())
        losses, _ = learner(batch(), theirs, 0.0)
        assert [*losses] == ["stage1", "stage2"]
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        assert all(p.grad is not None for p in helpers.parameters())
        optimizer.step()
        history.append(float(sum(losses.values()).detach()))
    assert history[-1] < history[0]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_columns_are_what_the_prelude_s_heads_say_in_evaluation():
    _, teacher = pair()
    function, shapes = HeadLogits(), measure(teacher, (16, 16))
    trained = TeacherHeads().helpers(shapes, shapes)
    trained["teacher_heads"]["stage1"][1].running_mean += 0.1
    modules = modules_of([function], shapes, 10)
    modules.load_state_dict(trained.state_dict())
    kept = copy.deepcopy(modules.state_dict())
    outputs = teacher.outputs(batch().pixels, Signal.LOGITS | Signal.FEATURES)
    columns = with_columns(outputs, [function], Signal.LOGITS | Signal.DERIVED, modules).derived
    trained.eval()
    for stage in ("stage1", "stage2"):
        expected = trained["teacher_heads"][stage](outputs.features[stage])
        assert torch.equal(columns[f"{stage}.logits"], expected)
    assert len(columns) == 2
    assert all(torch.equal(kept[name], value) for name, value in modules.state_dict().items())
    state = torch.random.get_rng_state()
    sizes = shapes_of_columns([function], shapes, 7)
    assert sizes == {"stage1.logits": (7,), "stage2.logits": (7,)}
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_conv_head_has_two_convolutions_and_two_linear_layers():
    head = head_of("conv", 5, 7)
    weights = [m.weight.shape for m in head if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights == [(256, 5, 3, 3), (256, 256, 3, 3), (256, 256), (7, 256)]
    assert head(torch.randn(2, 5, 6, 6)).shape == (2, 7)
    assert [type(m) for m in head_of("linear", 5, 7)][-1] is nn.Linear


def test_heads_are_the_student_s_own_and_are_not_exported():
    _, _, heads = asked(LINEAR)
    assert [*heads] == ["stage1", "stage2"]
    assert not LINEAR.releases(heads)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    _, teacher = pair()
    LINEAR.load_prelude(heads, helpers_of(TeacherHeads(), teacher, teacher).state_dict())
    assert all(torch.equal(before[name], value) for name, value in heads.state_dict().items())


def test_stages_are_paired_by_name_and_what_has_no_pair_is_refused():
    def shapes(count):
        return Shapes(
            10, 8, {"stem": (4, 8, 8)} | {f"stage{i}": (4, 8, 8) for i in range(1, count)}
        )

    for mine, theirs, paired in ((4, 4, 2), (5, 4, 2), (4, 5, 2), (3, 5, 1)):
        helpers = LINEAR.helpers(shapes(mine), shapes(theirs))
        assert [*helpers] == [f"stage{i + 1}" for i in range(paired)]
        spots = LINEAR.spots(shapes(mine).features, dict.fromkeys(helpers))
        assert [*spots] == [*helpers, "logits"]
    for mine, theirs in ((2, 4), (4, 2), (4, 0)):
        with pytest.raises(ConfigError, match="networks with two stages or more"):
            LINEAR.helpers(shapes(mine), shapes(theirs))
    with pytest.raises(ConfigError, match="Choose a teacher with two stages"):
        TeacherHeads().helpers(shapes(4), shapes(2))
