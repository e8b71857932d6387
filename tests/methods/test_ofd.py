"""The overhaul of feature distillation: margins and the partial distance."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.ofd import OFD, margins, partial_loss
from raykd.models import measure
from tests.small import batch, golden_maps, pair

MAPS = golden_maps()
LIVE = OFD().needs()


def test_a_margin_is_the_expected_negative_value():
    mean = torch.tensor([-2.0, -0.3, 0.0, 0.4, 2.0], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, -2.0, 1.5, 1.0], dtype=torch.float64)
    for m, s, margin in zip(mean, scale.abs(), margins(mean, scale), strict=True):
        x = torch.linspace(m - 12 * s, 0.0, 200_001, dtype=torch.float64)
        density = torch.exp(-0.5 * ((x - m) / s) ** 2)
        expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
        torch.testing.assert_close(margin, expected, rtol=1e-6, atol=0)


def test_a_channel_that_is_hardly_ever_negative_has_a_margin_of_three_deviations():
    result = margins(torch.tensor([4.0, 3.0]), torch.tensor([1.0, 1.0]))
    assert result[0] == -3
    assert -1 < result[1] < 0  # a chance of 0.00135


def test_a_channel_without_variance_has_a_finite_margin():
    result = margins(torch.tensor([-0.5, 0.0, 0.5]), torch.zeros(3))
    assert result.tolist() == pytest.approx([-0.5, 0.0, 0.0], abs=1e-9)


def test_the_loss_is_the_formula_neuron_by_neuron():
    margin = torch.tensor([-0.9, -0.5, -0.1, -0.3, -0.7], dtype=torch.float64)
    student, teacher = MAPS["fs5"], MAPS["ft"]
    total = 0.0
    for n, c, h, w in torch.cartesian_prod(*map(torch.arange, student.shape)).tolist():
        s, t, m = student[n, c, h, w].item(), teacher[n, c, h, w].item(), margin[c].item()
        if t <= m:
            total += (s - m) ** 2 if s > m else 0.0
        elif t <= 0:
            total += (s - t) ** 2 if s > t else 0.0
        else:
            total += (s - t) ** 2
    loss = partial_loss(student, teacher, margin)
    assert loss.item() == pytest.approx(total / 4, rel=1e-12)


def test_the_margins_come_from_the_teachers_batch_norms():
    student, teacher = pair()
    method = OFD()
    helpers = method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    assert method.needs_calibration(helpers)
    method.calibrate(helpers, iter([teacher.outputs(batch(2).pixels, LIVE)]))
    assert not method.needs_calibration(helpers)
    for stage, connector in helpers.items():
        norm = teacher.norms[stage]
        expected = margins(norm.bias, norm.weight).float()
        torch.testing.assert_close(connector.margin, expected)
        assert connector.margin.shape == (teacher.norms[stage].num_features,)


def test_a_teacher_without_known_batch_norms_is_refused():
    _, teacher = pair()
    helpers = OFD().helpers(measure(teacher, (16, 16)), measure(teacher, (16, 16)))
    vars(teacher)["norms"] = {"stage1": teacher.norms["stage1"]}
    with pytest.raises(ConfigError, match="none is known for its 'stage2'"):
        OFD().calibrate(helpers, [teacher.outputs(batch(2).pixels, LIVE)])


def test_each_stage_counts_twice_as_much_as_the_one_before():
    shapes = [Shapes(10, 6, {f"stage{n}": (k, 4, 4) for n in (1, 2)}) for k in (3, 5)]
    method = OFD(weight=3.0)
    helpers = method.helpers(*shapes).double()
    logits = torch.zeros(4, 10, dtype=torch.float64)
    mine = Outputs(logits, {"stage1.pre": MAPS["a8"], "stage2.pre": MAPS["fs"]})
    theirs = Outputs(logits, {"stage1.pre": MAPS["ft"], "stage2.pre": MAPS["ft"]})
    losses = method.losses(mine, theirs, batch(4), helpers)
    small = MAPS["a8"].reshape(4, 3, 4, 2, 4, 2).mean((3, 5))
    expected = {
        stage: 3 * share * partial_loss(helpers[stage](maps), MAPS["ft"], helpers[stage].margin)
        for stage, share, maps in (("stage1", 0.5, small), ("stage2", 1.0, MAPS["fs"]))
    }
    torch.testing.assert_close(dict(losses), expected)


def test_it_reads_pre_activations_and_the_live_teacher():
    assert OFD().needs() == Signal.PREACTIVATIONS | Signal.LIVE
