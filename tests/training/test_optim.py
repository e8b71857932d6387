"""Learning rates by epoch and step."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from raykd.recipes import Optim
from raykd.training.optim import build_optimiser, learning_rate, load_state, milestones, update
from tests.each import each


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


@each(
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


@each("name", ["sgd", "adamw"])
def test_a_state_of_a_fused_update_is_gone_on_with_as_the_device_does_it(name):
    optim = Optim(name=name, lr=0.1)
    weights = [nn.Linear(3, 2) for _ in range(2)]
    weights[1].load_state_dict(weights[0].state_dict())
    plain, other = (build_optimiser(optim, weight) for weight in weights)
    for optimiser, weight in zip((plain, other), weights, strict=True):
        weight(torch.ones(1, 3)).sum().backward()
        update(optimiser, 0.1, None)
    state = other.state_dict()
    state["param_groups"][0]["fused"] = True  # as on a GPU
    load_state(other, state)
    assert other.param_groups[0]["fused"] is None
    for optimiser, weight in zip((plain, other), weights, strict=True):
        weight(torch.ones(1, 3)).sum().backward()
        update(optimiser, 0.1, None)
    assert torch.equal(weights[0].weight, weights[1].weight)


def test_an_update_clips_each_group_sets_its_rate_and_uses_gradients_up():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    groups = [{"params": [*first.parameters()]}, {"params": [*second.parameters()], "rate": 0.5}]
    optimiser = torch.optim.SGD(groups, lr=1.0)
    before = [part.weight.detach().clone() for part in (first, second)]
    (100 * (first(torch.ones(1, 2)) + second(torch.ones(1, 2)))).sum().backward()
    update(optimiser, 0.1, 3.0)
    for part, start, rate in zip((first, second), before, (0.1, 0.05), strict=True):
        moved = torch.full((1, 2), rate * 3.0 / 3**0.5)  # a gradient of three equal numbers
        torch.testing.assert_close(start - part.weight.detach(), moved, rtol=1e-4, atol=1e-6)
        assert all(value.grad is None for value in part.parameters())


@each(
    ("optim", "plain"),
    [
        (Optim(lr=0.1, nesterov=True), partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
        (Optim(name="adamw", lr=0.1), torch.optim.AdamW),
    ],
)
def test_updates_are_those_of_torch(optim, plain):
    networks = [nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours = build_optimiser(optim, networks[0])
    theirs = plain(networks[1].parameters(), lr=0.1, weight_decay=optim.weight_decay)
    for scale in (1.0, -2.0, 0.5):
        for network, optimiser in zip(networks, (ours, theirs), strict=True):
            network(torch.full((4, 3), scale)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        assert torch.equal(networks[0].weight, networks[1].weight)
    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()


TRAINING = """
import sys
import raykd
data = {"name": "digits", "limit": 64}
optim = {"epochs": 1, "batch": 32}
student = raykd.Student("resnet8", data=data, optim=optim, method="kd",
    teacher={"model": "resnet14", "optim": optim})
experiment = raykd.Experiment(student, scale={"workers": 0})
raykd.run(experiment, store=sys.argv[1])
assert "torch._dynamo" not in sys.modules, "imported"
"""


@pytest.mark.slow
def test_a_training_does_not_import_the_compiler_of_torch(tmp_path):
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
