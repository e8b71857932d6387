"""Spot-adaptive distillation as a whole: its steps, what it trains, refuses and counts, modes."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods import METHODS
from raykd.methods.ab import AB
from raykd.methods.at import AT
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.ft import FT
from raykd.methods.kd import KD
from raykd.methods.mlkd import MLKD
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.sakd import SAKD
from raykd.methods.skd import SKD
from raykd.methods.sp import SP
from raykd.methods.stkd import STKD
from raykd.methods.vid import VID
from raykd.models import build
from raykd.recipes import Optim
from raykd.teachers.source import LiveTeacher
from raykd.training.learner import Learner
from raykd.training.optim import build_optimiser
from tests.each import each
from tests.methods.sakd_cases import (
    BASES,
    LABELS,
    PAPER,
    REFUSED,
    SMALL,
    answer,
    assert_finite,
    assert_state,
    assert_trains,
    base_of,
    chosen_as,
    decisions,
    force,
    helpers_of,
    name_of,
    seen,
    source,
    state,
    total,
)
from tests.small import batch, pair, pair_for
from tests.tiers import slow_but

# What is trained, and what is not.


@each(
    ("name", "mode"),
    slow_but(
        [*((name, "adaptive") for name in ("at", "crd", "reviewkd", "mlkd")), ("at", "reverse")],
        [("at", "adaptive"), ("crd", "adaptive")],
    ),
)
def test_a_step_s_losses_change_nothing_but_what_they_should(name, mode):
    student, teacher = pair()
    method = SAKD(base=base_of(name), mode=mode)
    helpers = helpers_of(method, student, teacher)
    sample = batch()
    twin = deepcopy(student).train()
    seen(method, twin, sample)
    before = state(teacher)
    learner = Learner(student, method, helpers).train()
    theirs = answer(method, teacher, sample)
    losses, _ = learner(sample, theirs, 1.0)
    assert_state(teacher, before)
    assert_state(student, twin.state_dict())
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())
    network = [*student.parameters(), *teacher.parameters(), *helpers["base"].parameters()]
    losses.pop("route").backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in network)
    routing = [parameter.grad.clone() for parameter in helpers["routing"].parameters()]
    total(losses).backward()
    for parameter, gradient in zip(helpers["routing"].parameters(), routing, strict=True):
        assert torch.equal(parameter.grad, gradient)


@each(
    ("base", "gamma"),
    slow_but(
        [(AT(), 2.0), (RelationalKD(), 2.0), (VID(), 2.0), (CRD(**SMALL), 1.0)],
        [(RelationalKD(), 2.0), (CRD(**SMALL), 1.0)],
    ),
)
def test_gamma_is_the_official_one_of_each_base_unless_it_is_given(base, gamma):
    student, teacher = pair()
    sample, routes = batch(), []
    for given in (None, gamma, 3.0):
        method = SAKD(base=base, gamma=given)
        helpers = helpers_of(method, student, teacher)
        force(helpers, 1)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        routes.append(method.losses(mine, theirs, sample, helpers)["route"])
    plain = F.cross_entropy(theirs.logits, sample.targets)
    above = bool(plain > F.cross_entropy(mine.logits, sample.targets))
    assert torch.equal(routes[0], routes[1])
    for route, factor in zip(routes[1:], (gamma, 3.0), strict=True):
        torch.testing.assert_close(route, plain * factor if above else plain / factor)


# The specification once more, step by step.


class Naive:
    """A.2.4 of the specification with two optimisers, spot by spot, in float64."""

    LR, DECAY, ROUTING_DECAY = 0.05, 5e-4, 1e-3

    def __init__(self, learner, teacher, distance, spots, gamma):
        own = deepcopy(learner)
        self.student, self.teacher, self.helpers = own.student, deepcopy(teacher), own.helpers
        self.base, routing = own.helpers["base"], own.helpers["routing"]
        self.policy, self.phi, self.psi = routing.policy, routing.to_teacher, routing.to_student
        self.distance, self.spots, self.gamma = distance, spots, gamma
        adapters = [*self.phi.parameters(), *self.psi.parameters()]
        self.routing = torch.optim.SGD(
            [*self.policy.parameters(), *adapters],
            lr=self.LR / 2,
            momentum=0.9,
            weight_decay=self.ROUTING_DECAY,
        )
        trained = [*self.student.parameters(), *self.base.parameters()]
        self.learning = torch.optim.SGD(trained, lr=self.LR, momentum=0.9, weight_decay=self.DECAY)

    @staticmethod
    def parts(network):
        return {**network.stages, "embedding": network.pool, "logits": network.classifier}

    def everything(self, network, x):
        told = {}
        for name, part in self.parts(network).items():
            told[name] = x = part(x)
        return told

    def segment(self, network, x, after, upto):
        names = [*self.parts(network)]
        start = names.index(after) + 1 if after else 0
        for name in names[start : names.index(upto) + 1]:
            x = self.parts(network)[name](x)
        return x

    @staticmethod
    def cross_entropy(logits, labels):
        rows = zip(logits.log_softmax(1), labels.tolist(), strict=True)
        return -sum(row[label] for row, label in rows) / len(labels)

    def step(self, sample, uniform):
        x, y, size = sample.pixels, sample.targets, len(sample.targets)
        # 1
        with torch.no_grad():
            t = self.everything(self.teacher, x)
        s = self.everything(self.student, x)
        # 2
        p = self.policy(torch.cat([t["embedding"], s["embedding"]], dim=1).detach())
        p = p.view(size, -1, 2)
        g = -torch.log(-torch.log(uniform + 1e-20) + 1e-20).view_as(p)
        soft = ((p + g) / 5).softmax(2)
        # In this order 0 and 1 are exact; else zeros of a ReLU would become tiny numbers, of which
        # a maximum pooling takes another one.
        a = (F.one_hot(soft.argmax(2), 2) + (soft - soft.detach()))[:, :, 0]
        # 3
        loss = self.cross_entropy(s["logits"], y)
        for r, (spot, other) in enumerate(self.spots):
            rows = [n for n in range(size) if a[n, r] > 0.5]
            if rows:
                d = self.distance(self.base, s[spot][rows], t[other][rows], sample.ids[rows])
                loss = loss + len(rows) / size * d
        for n in range(size):
            if a[n, -1] > 0.5:
                q, log_p = (t["logits"][n] / 4).softmax(0), (s["logits"][n] / 4).log_softmax(0)
                loss = loss + 16 * (q * (q.log() - log_p)).sum() / size
        # 4
        self.student.eval()
        u_s = u_t = x
        before = (None, None)
        for r, (spot, other) in enumerate(self.spots):
            m_s = self.segment(self.student, u_s, before[0], spot)
            m_t = self.segment(self.teacher, u_t, before[1], other)
            gate = a[:, r].reshape(-1, *[1] * (m_s.dim() - 1))
            u_t = gate * m_t + (1 - gate) * self.phi[spot](m_s)
            u_s = gate * self.psi[spot](m_t) + (1 - gate) * m_s
            before = spot, other
        z_t = self.segment(self.teacher, u_t, before[1], "logits")
        z_s = self.segment(self.student, u_s, before[0], "logits")
        z = a[:, -1:] * z_t + (1 - a[:, -1:]) * z_s
        self.student.train()
        # 5
        route, plain = self.cross_entropy(z, y), self.cross_entropy(s["logits"], y).item()
        if route.item() > plain:
            route = self.gamma * route
        elif route.item() < plain:
            route = route / self.gamma
        route = route + (size / 2 - a[:, -1].sum()).clamp_min(0)
        # 6
        self.routing.zero_grad()
        route.backward()
        self.routing.step()
        # 7
        self.learning.zero_grad()
        loss.backward()
        self.learning.step()
        return loss.item(), route.item(), a.detach().round()


def attention(helpers, mine, theirs, ids):
    side = min(mine.shape[2], theirs.shape[2])
    mine, theirs = (F.adaptive_avg_pool2d(f, side) for f in (mine, theirs))
    q = [F.normalize(f.pow(2).mean(1).flatten(1), dim=1) for f in (mine, theirs)]
    return 1000 * (q[0] - q[1]).pow(2).mean()


def hint(helpers, mine, theirs, ids):
    return (helpers["regressor"](mine) - theirs).pow(2).mean()


def grams(helpers, mine, theirs, ids):
    g = [f.flatten(1) @ f.flatten(1).T for f in (mine, theirs)]
    g = [m / m.pow(2).sum(1, keepdim=True).sqrt() for m in g]
    return 3000 * (g[0] - g[1]).pow(2).sum() / len(mine) ** 2


def relations(helpers, mine, theirs, ids):
    count = len(mine)
    if count < 2:
        return 0.0 * mine.sum()

    def both(h):
        difference = h[None] - h[:, None]  # [i, j]: from i to j
        squares = difference.pow(2).sum(2)
        apart = squares > 0
        d = torch.where(apart, squares, 1.0).sqrt() * apart
        unit = difference / torch.where(apart, squares, 1.0).sqrt()[:, :, None]
        return d / d[apart].mean(), torch.einsum("ijd,ikd->ijk", unit, unit)

    (d_s, a_s), (d_t, a_t) = both(mine), both(theirs)
    return 25 * F.smooth_l1_loss(d_s, d_t) + 50 * F.smooth_l1_loss(a_s, a_t)


def contrast(helpers, mine, theirs, ids):
    memory, size = helpers["memory"], len(LABELS)
    rows = memory.sample_rows(Batch(None, LABELS[ids], ids, 0, 0), 16, relaxed=False)
    v_s, v_t = (
        F.normalize(helpers[who].linear(h), dim=1)
        for who, h in (("student", mine), ("teacher", theirs))
    )
    loss = 0.0
    for v, bank, z in (
        (v_s, memory.teacher, memory.z_student),
        (v_t, memory.student, memory.z_teacher),
    ):
        o = ((bank[rows] * v[:, None]).sum(2) / 0.07).exp()
        if z == 0:
            z.copy_(o.detach().mean() * size)
        o, noise = o / z, 16 / size
        positive = (o[:, 0] / (o[:, 0] + noise + 1e-7)).log()
        negative = (noise / (o[:, 1:] + noise + 1e-7)).log().sum(1)
        loss = loss - (positive + negative).mean()
    for bank, v in ((memory.student, v_s), (memory.teacher, v_t)):
        for i, row in zip(ids.tolist(), v.detach(), strict=True):
            bank[i] = F.normalize(0.5 * bank[i] + 0.5 * row, dim=0)
    return 0.8 * loss


STAGES = [(f"stage{n}",) * 2 for n in (1, 2, 3)]
EMBEDDING = [("embedding",) * 2]
STEPS = [
    (AT(), attention, STAGES, 2.0, ("vgg8", "wrn_16_1")),
    (FitNet(weight=1.0), hint, STAGES[1:2], 1.0, ("resnet8", "resnet8x4")),
    (SP(), grams, STAGES[2:], 1.0, ("resnet8", "resnet14")),
    (SP(), grams, [("stage3", "stage4")], 1.0, ("wrn_16_1", "vgg8")),
    (RelationalKD(), relations, EMBEDDING, 2.0, ("resnet8", "resnet8x4")),
    (CRD(**SMALL), contrast, EMBEDDING, 1.0, ("resnet8", "resnet8x4")),
]


@each(
    ("base", "distance", "spots", "gamma", "names"),
    slow_but(STEPS, [STEPS[5]]),
    ids=name_of,
)
def test_three_joint_steps_are_the_specification_s_with_two_optimisers(
    base, distance, spots, gamma, names
):
    torch.manual_seed(0)
    student, teacher = (build(name, 10).double() for name in names)
    teacher.eval().requires_grad_(False)
    method = SAKD(base=base)
    helpers = helpers_of(method, student, teacher).double()
    if helpers["routing"].policy.bias[0] > 5:
        helpers["routing"].policy.bias.data[0::2] -= 10  # so that both networks have their turn
    learner = Learner(student, method, helpers).train()
    naive = Naive(learner, teacher, distance, spots, gamma)
    optimiser = build_optimiser(Optim(), learner)
    taught = []
    for step in range(3):
        sample = batch(8, 16, seed=step)
        sample = replace(
            sample, pixels=sample.pixels.double(), ids=torch.arange(8) * 11 + step, epoch=0
        )
        uniform = helpers["selection"].uniform(sample, 2 * decisions(helpers))
        # Not through the source of teachers' outputs, which gives logits as float32.
        theirs = teacher.outputs(sample.pixels, method.needs())
        losses, _ = learner(sample, theirs, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * group.get("rate", 1.0)
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
        expected, route, gates = naive.step(sample, uniform)
        taught.append(gates)
        assert losses.pop("route").item() == pytest.approx(route, rel=1e-8)
        assert total(losses).item() == pytest.approx(expected, rel=1e-8)
    assert 0.1 < torch.stack(taught).mean() < 0.9
    for mine, theirs in ((student, naive.student), (helpers, naive.helpers)):
        # float64: rounding of 1e-16, which three steps with large weights carry on.
        states = mine.state_dict(), theirs.state_dict()
        torch.testing.assert_close(*states, rtol=1e-8, atol=1e-10)


# What it begins with.


def test_what_cannot_be_a_base_is_refused():
    reasons = {
        "simkd": "leaves the student's classifier untrained",
        "jacobian": "cannot be given some of them",
        "multi_head_kd": "reads derived columns",
        "sakd": "'sakd'",
    }
    for name in REFUSED:
        reason = reasons.get(name, "reads nothing of the teacher")
        with pytest.raises(ValidationError, match=reason):
            SAKD.read({"base": {"name": name}})


def test_a_sum_with_a_part_that_cannot_be_a_base_is_refused():
    with pytest.raises(ValidationError, match="'ab' reads nothing of the teacher"):
        SAKD(base=Combine(combine=(AB(), AT())))
    jacobian = METHODS["jacobian"]()
    with pytest.raises(ValidationError, match="'jacobian' differentiates"):
        SAKD(base=Combine(combine=(AT(), jacobian)))


def test_every_method_is_a_base_or_refused():
    assert set(BASES) | set(REFUSED) == set(METHODS)
    assert set(PAPER) <= set(BASES)
    for name in BASES:
        assert SAKD(base=base_of(name)).label == f"sakd({base_of(name).label})"


def test_helpers_of_the_base_come_from_and_go_to_where_the_base_s_own_do():
    student, teacher = pair()
    method = SAKD(base=FT())
    assert method.prelude() == FT().prelude()
    helpers = helpers_of(method, student, teacher)
    found = {k: torch.full_like(v, 0.5) for k, v in helpers["base"].state_dict().items()}
    found = {k: v for k, v in found.items() if k.startswith("paraphraser.")}
    method.load_prelude(helpers, found)
    paraphraser = helpers["base"]["paraphraser"].state_dict()
    assert all(bool((value == 0.5).all()) for value in paraphraser.values())
    assert not [*method.releases(helpers)]
    skd = SAKD(base=SKD(radius=2.0))
    released = skd.releases(helpers_of(skd, student, teacher))
    sample = batch()
    expected = 2 * F.layer_norm(student(sample.pixels), (10,), eps=1e-7)
    mine = student.outputs(sample.pixels, Signal.LOGITS)
    torch.testing.assert_close(skd.scores(mine, None, released), expected)


# What it counts.


@each(
    ("mode", "mixed"),
    [("adaptive", True), ("random", False)],
)
def test_the_counts_are_those_of_a_hand_count(mode, mixed):
    student, teacher = pair()
    method = SAKD(mode=mode)
    helpers = helpers_of(method, student, teacher)
    selection = helpers["selection"]
    assert selection.names == ("stage1", "stage2", "stage3", "logits")
    wanted = torch.tensor(
        [[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1]], dtype=torch.bool
    )
    sample = chosen_as(method, helpers, batch(4), wanted)
    targets = torch.tensor([7, 2, 7, 0])
    if mixed:
        own, other = F.one_hot(targets, 10), F.one_hot((targets + 1) % 10, 10)
        targets = (0.7 * own + 0.3 * other).float()
    sample = replace(sample, targets=targets)
    losses, _ = Learner(student, method, helpers)(sample, answer(method, teacher, sample), 1.0)
    assert bool(total(losses).isfinite())
    told = selection.metrics(selection.counts)
    shares = {"stage1": 75.0, "stage2": 75.0, "stage3": 0.0, "logits": 75.0}
    by_class = {
        "stage1": [100.0, None, 100.0, *[None] * 4, 50.0, None, None],
        "stage2": [100.0, None, 100.0, *[None] * 4, 50.0, None, None],
        "stage3": [0.0, None, 0.0, *[None] * 4, 0.0, None, None],
        "logits": [100.0, None, 0.0, *[None] * 4, 100.0, None, None],
    }
    expected = {f"selected_{spot}": share for spot, share in shares.items()}
    assert told == {**expected, "selected_by_class": by_class}


def test_unseen_classes_have_no_share_and_counts_add_up_over_steps():
    student, teacher = pair()
    method = SAKD(base=PKT())
    helpers = helpers_of(method, student, teacher)
    selection, taught = helpers["selection"], torch.zeros(2, dtype=torch.int64)
    for step in range(3):
        sample = batch(4, seed=step)
        sample = replace(sample, ids=torch.arange(4) + 4 * step, targets=sample.targets % 5)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        uniform = selection.uniform(sample, 4)
        gates = helpers["routing"].gates(mine.embedding, theirs.embedding, uniform, 5.0)
        taught += gates.long().sum(0)
        method.losses(mine, theirs, sample, helpers)
    assert selection.counts.sum(1).tolist() == [*taught.tolist(), 12]
    for shares in selection.metrics(selection.counts)["selected_by_class"].values():
        assert shares[5:] == [None] * 5


# Modes for comparison.


def test_mode_names_are_those_that_are_tested_here():
    modes = get_args(SAKD.model_fields["mode"].annotation)
    assert modes == ("adaptive", "always", "random", "reverse", "both")


@each("name", slow_but(BASES, ["at", "combine"]))
def test_mode_always_is_the_sum_of_the_base_and_kd(name):
    student, teacher = pair_for(base_of(name))
    method, sample = SAKD(base=base_of(name), mode="always"), batch()
    parts = method.base.combine if name == "combine" else (method.base,)
    plain = Combine(combine=(*parts, KD(weight=1.0)))
    helpers, others = (helpers_of(m, student, teacher) for m in (method, plain))
    assert [*helpers] == ["base"]
    assert plain.needs() in method.needs()
    assert method.looks() == plain.looks()
    theirs, mine = answer(method, teacher, sample), seen(method, student, sample)
    losses = method.losses(mine, theirs, sample, helpers)
    expected = plain.losses(mine, theirs, sample, others)
    assert losses.keys() == expected.keys()
    for spot, loss in expected.items():
        assert torch.equal(losses[spot], loss), spot


def test_mode_random_tosses_a_coin_for_each_sample_and_spot_and_has_no_policy():
    student, teacher = pair()
    method = SAKD(mode="random")
    helpers = helpers_of(method, student, teacher)
    assert [*helpers] == ["base", "selection"]
    assert not [*helpers.parameters()]
    assert method.needs() == AT().needs() | Signal.LOGITS
    selection = helpers["selection"]
    every = Batch(None, None, torch.arange(20_000), 0, 0)
    coins = selection.uniform(every, 4) < 0.5
    # Five standard errors of a coin over 20,000 samples; of two that agree as well.
    margin = 5 * 0.5 / math.sqrt(20_000)
    for r in range(4):
        assert abs(coins[:, r].double().mean() - 0.5) < margin
        for other in range(r):
            assert abs((coins[:, r] == coins[:, other]).double().mean() - 0.5) < margin
    sample = batch()
    mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
    losses = method.losses(mine, theirs, sample, helpers)
    assert losses.keys() == {"stage1", "stage2", "stage3", "logits"}
    assert selection.counts[:-1].sum(1).tolist() == coins[sample.ids].sum(0).tolist()


@pytest.mark.parametrize("name", slow_but(["at", "crd", "reviewkd"], ["at"]))
def test_mode_reverse_distils_exactly_where_the_policy_says_not_to(name):
    student, teacher = pair()
    sample, told, mine, theirs = batch(), {}, None, None
    for mode in ("adaptive", "reverse"):
        method = SAKD(base=base_of(name), mode=mode)
        helpers = helpers_of(method, student, teacher)
        mine = mine or seen(method, student, sample)
        theirs = theirs or answer(method, teacher, sample)
        losses = method.losses(mine, theirs, sample, helpers)
        told[mode] = losses["route"], helpers["selection"].counts
    assert torch.equal(told["adaptive"][0], told["reverse"][0])
    counts = [counts for _, counts in told.values()]
    assert torch.equal(counts[0][:-1] + counts[1][:-1], counts[0][-1:].expand_as(counts[0][:-1]))
    assert bool((counts[0][:-1].sum(1) > 0).any())


def taught_beside(method, student, teacher, colours=(None, None)) -> Learner:
    """The learner of a method that trains the teacher, as a run's preparation makes it.

    `colours` are the (mean, std) that the student's pixels have, and that the teacher wants.
    """
    helpers = helpers_of(method, student, teacher)
    live = LiveTeacher(teacher, method.needs(), student=colours[0], own=colours[1], trained=True)
    return Learner(student, method, helpers, live).train()


@pytest.mark.parametrize("name", slow_but(["at", "crd", "reviewkd", "combine"], ["at"]))
def test_mode_both_trains_the_teacher_by_labels_and_losses_and_not_by_the_route(name):
    student, teacher = pair()
    method, sample = SAKD(base=base_of(name), mode="both"), batch()
    learner = taught_beside(method, student, teacher)
    losses, _ = learner(sample, None, 1.0)
    spots = method.spots(student.stages, teacher.stages)
    assert losses.keys() == {"label", "route", "teacher", *spots}
    parameters = [*teacher.parameters()]
    assert all(parameter.requires_grad for parameter in parameters)
    of_route = torch.autograd.grad(
        losses["route"], [*parameters, *student.parameters()], retain_graph=True, allow_unused=True
    )
    assert all(gradient is None for gradient in of_route)
    of_spots = torch.autograd.grad(
        sum(losses[spot] for spot in spots), parameters, retain_graph=True, allow_unused=True
    )
    assert any(gradient is not None and bool((gradient != 0).any()) for gradient in of_spots)
    total(losses).backward()
    assert_trains(learner)
    groups = build_optimiser(Optim(), learner).param_groups
    optimised = [parameter for group in groups for parameter in group["params"]]
    assert len({*optimised}) == len(optimised)
    assert {*parameters, *student.parameters()} <= {*optimised}


@each(("name", "gate"), [("at", 0), ("kd", 1)])
def test_mode_both_routes_through_both_networks_in_evaluation_mode(name, gate):
    student, teacher = pair()
    twins = deepcopy(student).train(), deepcopy(teacher).train()
    method, sample = SAKD(base=base_of(name), mode="both", gamma=1.0), batch()
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    learner = taught_beside(method, student, teacher, (((0.5,) * 3, (0.25,) * 3), (mean, std)))
    force(learner.helpers, gate)
    losses, logits = learner(sample, None, 1.0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = [sample.pixels, (0.25 * sample.pixels + 0.5 - mean) / std]
    said = [twin(own) for twin, own in zip(twins, pixels, strict=True)]
    for network, twin in zip((student, teacher), twins, strict=True):
        assert all(module.training for module in network.modules())
        # One pass in training mode, and no more.
        torch.testing.assert_close(network.state_dict(), twin.state_dict())
    theirs = F.cross_entropy(said[1], sample.targets)
    torch.testing.assert_close(losses["teacher"], theirs)
    alone = twins[gate].eval()(pixels[gate])
    missing = 0.0 if gate else 4.0  # half of 8
    torch.testing.assert_close(
        losses["route"], F.cross_entropy(alone, sample.targets) + missing, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(losses["label"], F.cross_entropy(logits, sample.targets))


@each("base", [MLKD(), STKD(clean_kd=1.0)], ids=name_of)
def test_mode_both_works_for_bases_with_several_looks(base):
    student, teacher = pair()
    sample = batch()
    learner = taught_beside(SAKD(base=base, mode="both"), student, teacher)
    losses, _ = learner(sample, None, 1.0)
    assert bool(total(losses).isfinite())


# Looks, precisions and caches.


def test_kd_and_the_route_compare_what_both_networks_say_of_the_same_pixels():
    for base in (*map(base_of, BASES), STKD(teacher="mixed_output")):
        looks = SAKD(base=base).looks()
        assert looks.student[0] == looks.teacher[0], base


@each(
    ("name", "of_student", "of_teacher"),
    [
        *slow_but(((name, True, True) for name in BASES), [("at", True, True)]),
        ("crd", True, False),
        ("kd", False, True),
    ],
)
def test_each_network_may_run_in_bfloat16(name, of_student, of_teacher):
    student, teacher = pair_for(base_of(name))
    method, sample = SAKD(base=base_of(name)), batch()
    helpers = helpers_of(method, student, teacher)
    learner = Learner(student, method, helpers, autocast=of_student).train()
    theirs = source(method, teacher, bfloat16=of_teacher)(sample)
    losses, logits = learner(sample, theirs, 1.0)
    assert logits.dtype == (torch.bfloat16 if of_student else torch.float32)
    assert_finite(losses)
    total(losses).backward()
    assert_trains(learner)


@each("base", [CRD(**SMALL), SKD(radius=2.0)], ids=name_of)
def test_what_a_cache_holds_is_enough_for_bases_on_embeddings_and_logits(base):
    student, teacher = pair()
    method, sample = SAKD(base=base), batch()
    assert Signal.LIVE not in method.needs()
    whole = teacher.outputs(sample.pixels, Signal.EMBEDDING)
    stored = Outputs(whole.logits, embedding=whole.embedding).replace(classifier=teacher.classifier)
    told, mine = [], seen(method, student, sample)
    for theirs in (stored, answer(method, teacher, sample)):
        helpers = helpers_of(method, student, teacher)
        told.append(method.losses(mine, theirs, sample, helpers))
    assert told[0].keys() == told[1].keys()
    assert all(torch.equal(told[0][spot], told[1][spot]) for spot in told[0])
