"""Learning rates by epoch and step."""

import pytest
import torch

from raykd.engine.optim import build_optimiser, learning_rate, milestones
from raykd.recipes import Optim


def test_the_default_is_the_schedule_of_the_crd_benchmark():
    optim = Optim()
    rates = {epoch: learning_rate(optim, epoch * 781, 781) for epoch in (0, 149, 150, 180, 210)}
    assert rates == pytest.approx({0: 0.05, 149: 0.05, 150: 5e-3, 180: 5e-4, 210: 5e-5})


def test_default_milestones_scale_with_the_epochs():
    assert milestones(Optim()) == (150, 180, 210)
    assert milestones(Optim(epochs=16)) == (10, 12, 14)
    assert milestones(Optim(epochs=100, milestones=(30, 60, 90))) == (30, 60, 90)


def test_warm_up_grows_linearly_to_the_full_rate():
    optim = Optim(epochs=4, warmup_epochs=2, schedule="constant", lr=1.0)
    rates = [learning_rate(optim, step, 5) for step in range(20)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == [1.0] * 10


def test_cosine_falls_from_the_full_rate_towards_zero():
    optim = Optim(epochs=10, schedule="cosine", lr=1.0)
    rates = [learning_rate(optim, step, 3) for step in range(30)]
    assert rates[0] == 1.0
    assert rates[15] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("optim", "kind"),
    [(Optim(nesterov=True), torch.optim.SGD), (Optim(name="adamw"), torch.optim.AdamW)],
)
def test_the_optimiser_is_the_one_that_was_named(optim, kind):
    parameter = torch.nn.Parameter(torch.zeros(3))
    frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    optimiser = build_optimiser(optim, torch.nn.ParameterList([parameter, frozen]))
    assert isinstance(optimiser, kind)
    [group] = optimiser.param_groups
    assert group["params"] == [parameter]
    assert group["weight_decay"] == 5e-4
