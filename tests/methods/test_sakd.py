"""Spot-adaptive distillation: whom it teaches where, what it adds up, and what it trains."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from raykd.engine.learner import Learner
from raykd.engine.optim import build_optimiser
from raykd.methods import METHODS
from raykd.methods.ab import AB
from raykd.methods.at import AT
from raykd.methods.base import soft_cross_entropy
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.ft import FT
from raykd.methods.held import Shared
from raykd.methods.irg import IRG
from raykd.methods.kd import KD
from raykd.methods.mlkd import MLKD
from raykd.methods.ofd import OFD
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.reviewkd import ReviewKD
from raykd.methods.routing import gumbel
from raykd.methods.sakd import SAKD
from raykd.methods.skd import SKD
from raykd.methods.sp import SP
from raykd.methods.stkd import STKD
from raykd.methods.vid import VID
from raykd.models import build, measure
from raykd.recipes import Optim
from raykd.teachers.source import LiveTeacher, LookingTeacher
from raykd.types import Batch, Outputs, Signal
from tests.small import batch, pair

PAPER = ("fitnet", "at", "sp", "cc", "vid", "relational_kd", "pkt", "ft", "nst", "crd")
REFUSED = ("label_only", "ab", "fsp", "simkd", "jacobian", "sakd")
BASES = [name for name in METHODS if name not in REFUSED]
LABELS = torch.arange(640) % 10
SMALL = {"width": 8, "negatives": 16}  # of crd's memory


def base_of(name):
    """A base with its defaults, and a small memory."""
    if name == "crd":
        return CRD(**SMALL)
    if name == "combine":
        return Combine(combine=(CRD(**SMALL), AT(), KD(weight=1.0)))
    return METHODS[name]()


def helpers_of(method, student, teacher, side=16, seed=1):
    """The method's helpers, calibrated where it asks for that."""
    torch.manual_seed(seed)
    shapes = measure(student, (side, side)), measure(teacher, (side, side))
    helpers = method.helpers(*shapes, LABELS)
    if method.calibrates(helpers):
        method.calibrate(helpers, [answer(method, teacher, batch(side=side))])
    return helpers


def source(method, teacher, **options):
    """Whoever answers for a live teacher about every look that the method asks for."""
    live = LiveTeacher(teacher, method.needs() | Signal.LIVE, **options)
    looks = method.looks().teacher
    return live if looks == ("given",) else LookingTeacher(dict.fromkeys(looks, live))


def answer(method, teacher, sample):
    return source(method, teacher)(sample)


def seen(method, student, sample):
    """What the student in training says of every look that the method asks for."""
    made = {}
    for look in method.looks().student:
        pixels = (sample if look == "given" else sample.looks[look]).pixels
        made[look] = student.outputs(pixels, method.needs() | Signal.LIVE)
    return next(iter(made.values())).beside(made)


def force(helpers, gate):
    """Let the policy say the same of every sample, whatever the noise."""
    policy = helpers["routing"].policy
    nn.init.zeros_(policy.weight)
    nn.init.zeros_(policy.bias)
    policy.bias.data[0::2] = 1e4 if gate else -1e4


def whom(method, helpers, sample):
    """bool [B, R]: who is taught where, as the method decides for a policy that knows nothing."""
    count = len(helpers["selection"].names)
    if method.mode == "random":
        return helpers["selection"].uniform(sample, count) < 0.5
    noise = gumbel(helpers["selection"].uniform(sample, 2 * count)).view(-1, count, 2)
    chosen = noise[:, :, 0] > noise[:, :, 1]
    return ~chosen if method.mode == "reverse" else chosen


def with_ids(sample, ids):
    looks = {look: with_ids(other, ids) for look, other in sample.looks.items()}
    return replace(sample, ids=ids, looks=looks)


def chosen_as(method, helpers, sample, wanted):
    """The sample with ids by whose noise those are taught that `wanted` (bool [B, R]) says."""
    if "routing" in helpers:
        nn.init.zeros_(helpers["routing"].policy.weight)
        nn.init.zeros_(helpers["routing"].policy.bias)
    every = Batch(sample.pixels, sample.targets, torch.arange(len(LABELS)), 0, sample.epoch)
    decided = whom(method, helpers, every)
    ids, free = [], torch.ones(len(LABELS), dtype=torch.bool)
    for row in wanted:
        found = ((decided == row).all(1) & free).nonzero()[0, 0]
        free[found] = False
        ids.append(int(found))
    return with_ids(sample, torch.tensor(ids))


def decisions(helpers):
    return len(helpers["selection"].names)


def spots_of(method, mine, theirs):
    return list(method.spots(mine.features, theirs.features))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def total(losses):
    return torch.stack([*losses.values()]).sum()


# The gates by force.


FORCED = [
    *((("resnet8", "resnet14", 16), name) for name in PAPER),
    *((("resnet8", "resnet8x4", 16), name) for name in ("at", "crd", "reviewkd", "combine", "kd")),
    (("mobilenet_v2_x0_5", "vgg8", 32), "at"),
    (("shufflenet_v1", "wrn_16_1", 32), "sp"),
    (("torchvision/mobilenet_v3_small", "torchvision/resnet18", 64), "vid"),
    (("torchvision/resnet18", "torchvision/resnet18", 32), "fitnet"),
]


def built(student, teacher):
    torch.manual_seed(0)
    made = build(student, 10), build(teacher, 10)
    for network in made:  # as the loop has them
        network.to(memory_format=torch.channels_last)
    return made[0].train(), made[1].eval().requires_grad_(False)


@pytest.mark.parametrize(("networks", "name"), FORCED)
def test_without_any_teaching_there_is_the_labels_loss_and_the_route_is_the_student(networks, name):
    student, teacher = built(*networks[:2])
    side = networks[2]
    method = SAKD(base=base_of(name), gamma=1.0)
    helpers = helpers_of(method, student, teacher, side)
    force(helpers, 0)
    before = state(helpers["base"])
    learner, sample = Learner(student, method, helpers), batch(6, side)
    sample = replace(sample, pixels=sample.pixels.contiguous(memory_format=torch.channels_last))
    losses, logits = learner(sample, answer(method, teacher, sample), 1.0)
    plain = F.cross_entropy(logits, sample.targets)
    assert torch.equal(losses.pop("label"), plain)
    route = losses.pop("route")
    assert all(bool(loss == 0) for loss in losses.values())
    with torch.no_grad():
        alone = student.eval()(sample.pixels)
    assert torch.equal(route, F.cross_entropy(alone, sample.targets) + 3.0)  # half of 6 are missing
    if len(method.base.spots(student.stages, teacher.stages)) == 1:
        for key, value in helpers["base"].state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(("networks", "name"), FORCED)
def test_with_teaching_everywhere_it_is_the_sum_of_base_and_kd(networks, name):
    student, teacher = built(*networks[:2])
    side = networks[2]
    method, always = (SAKD(base=base_of(name), gamma=1.0, mode=m) for m in ("adaptive", "always"))
    helpers = helpers_of(method, student, teacher, side)
    force(helpers, 1)
    base = deepcopy(helpers["base"])
    sample = batch(6, side)
    sample = replace(sample, pixels=sample.pixels.contiguous(memory_format=torch.channels_last))
    theirs = answer(method, teacher, sample)
    mine = seen(method, student, sample)
    losses = dict(method.losses(mine, theirs, sample, helpers))
    assert torch.equal(losses.pop("route"), F.cross_entropy(theirs.logits, sample.targets))
    expected = dict(always.losses(mine, theirs, sample, nn.ModuleDict({"base": base})))
    assert losses.keys() == expected.keys()
    for spot, loss in expected.items():
        assert torch.equal(losses[spot], loss), spot


@pytest.mark.parametrize("name", BASES)
def test_mode_always_is_the_sum_of_the_base_and_kd(name):
    student, teacher = pair()
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


# Some of the samples.


def picked(outputs, rows):
    """The outputs of some rows, put together by hand."""
    return Outputs(
        outputs.logits[rows],
        {stage: value[rows] for stage, value in outputs.features.items()},
        outputs._embedding if outputs._embedding is None else outputs.embedding[rows],
        outputs._network,
        looks={look: picked(other, rows) for look, other in outputs._looks.items()},
    )


def of_rows(sample, rows):
    return Batch(
        sample.pixels[rows],
        sample.targets[rows],
        sample.ids[rows],
        sample.view,
        sample.epoch,
        {look: of_rows(other, rows) for look, other in sample.looks.items()},
        None if sample.weights is None else sample.weights[rows],
    )


@pytest.mark.parametrize("mode", ["adaptive", "random", "reverse"])
@pytest.mark.parametrize("name", BASES)
def test_a_spot_s_loss_is_the_base_s_for_its_rows_times_their_share(name, mode):
    student, teacher = pair()
    method = SAKD(base=base_of(name), mode=mode)
    helpers = helpers_of(method, student, teacher)
    count, size = decisions(helpers), 8
    wanted = torch.rand(size, count, generator=torch.Generator().manual_seed(3)) < 0.5
    wanted[0], wanted[1], wanted[2] = True, True, False  # two at least, and not all
    sample = chosen_as(method, helpers, batch(size), wanted)
    theirs, mine = answer(method, teacher, sample), seen(method, student, sample)
    base = deepcopy(helpers["base"])
    losses = dict(method.losses(mine, theirs, sample, helpers))
    losses.pop("route", None)
    expected = dict.fromkeys(losses, 0.0)
    parts = [(method.base, base)]
    if name == "combine":
        parts = [(part, base[str(i)]) for i, part in enumerate(method.base.combine)]
    parts.append((KD(weight=1.0), nn.ModuleDict()))
    for part, own in parts:
        spots = spots_of(part, mine, theirs)
        for spot in spots:
            column = spots_of(method, mine, theirs).index(spot)
            if part.joint:
                column = 0
            elif spot == "logits":
                column = count - 1
            rows = wanted[:, column].nonzero()[:, 0]
            some = part.losses(
                picked(mine, rows), picked(theirs, rows), of_rows(sample, rows), deepcopy(own)
            )
            expected[spot] = expected[spot] + len(rows) / size * some[spot]
    for spot, loss in losses.items():
        # A loss over other rows adds the same numbers in the same order; the share is rounded.
        torch.testing.assert_close(loss, expected[spot], rtol=2e-6, atol=1e-9, msg=spot)


def patterns(count, size=8):
    """Who is taught where: nobody, one alone, one at one spot alone, one at no spot but one."""
    nobody = torch.zeros(size, count, dtype=torch.bool)
    one, once, others = nobody.clone(), nobody.clone(), nobody.clone()
    one[5] = True
    once[5, 0] = True
    others[5, 1:] = True
    others[2:4, 1:] = True
    return {"nobody": nobody, "one": one, "once": once, "others": others}


@pytest.mark.parametrize("pattern", ["nobody", "one", "once", "others"])
@pytest.mark.parametrize("name", BASES)
def test_few_rows_or_none_at_a_spot_leave_losses_and_gradients_finite(name, pattern):
    student, teacher = pair()
    method = SAKD(base=base_of(name))
    helpers = helpers_of(method, student, teacher)
    wanted = patterns(decisions(helpers))[pattern]
    sample = chosen_as(method, helpers, batch(), wanted)
    if name == "spherical_kd":  # the labels' loss reads normalised logits
        assert torch.equal(whom(method, helpers, sample), wanted)
    before = state(helpers["base"])
    learner = Learner(student, method, helpers).train()
    theirs = answer(method, teacher, sample)
    losses, _ = learner(sample, theirs, 1.0)
    spots = method.spots(student.stages, teacher.stages)
    assert losses.keys() == {"label", "route", *spots}
    for spot, loss in losses.items():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite()), spot
    total(losses).backward()
    for key, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert bool(parameter.grad.isfinite().all()), key
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert helpers["selection"].counts[:-1].sum(1).tolist() == wanted.sum(0).tolist()
    if pattern == "nobody":
        assert all(bool(losses[spot] == 0) for spot in spots)
        if method.base.joint or len(spots) == 2:
            for key, value in helpers["base"].state_dict().items():
                assert torch.equal(value, before[key]), key


def test_memories_of_samples_that_are_not_taught_stay():
    student, teacher = pair()
    method = SAKD(base=CRD(**SMALL))
    helpers = helpers_of(method, student, teacher)
    memory = helpers["base"]["memory"]
    for rows in ([], [5], [1, 2, 6]):
        wanted = torch.zeros(8, 2, dtype=torch.bool)
        wanted[rows, 0] = True
        wanted[0, 1] = True  # at the logits, which must not matter
        sample = chosen_as(method, helpers, batch(), wanted)
        before = state(memory)
        method.losses(
            seen(method, student, sample), answer(method, teacher, sample), sample, helpers
        )
        for who in ("student", "teacher"):
            moved = (memory.get_buffer(who) != before[who]).any(1).nonzero()[:, 0]
            assert moved.tolist() == sorted(sample.ids[rows].tolist())
            assert bool(memory.get_buffer(f"z_{who}") != 0) == bool(rows or before[f"z_{who}"] != 0)


def test_helpers_that_all_workers_share_are_called_as_often_whoever_is_taught():
    student, teacher = pair()
    method = SAKD(base=CRD(**SMALL))
    told = []
    for rows in ([], [5], [1, 2, 6], range(8)):
        helpers, calls = helpers_of(method, student, teacher), []
        for module in helpers.modules():
            if isinstance(module, Shared):
                module.gather = lambda part, calls=calls: calls.append(part.shape[1:]) or part
        wanted = torch.zeros(8, 2, dtype=torch.bool)
        wanted[list(rows), 0] = True
        sample = chosen_as(method, helpers, batch(), wanted)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        for _ in range(2):  # with and without the memory's constants
            method.losses(mine, theirs, sample, helpers)
        told.append(calls)
    # Without a row the constants stay unset, and are asked for again.
    assert len(told[0]) == len(told[1]) + 2
    assert told[1] == told[2] == told[3] == told[0][:-6] + told[0][-4:]


@pytest.mark.parametrize("name", ["fitnet", "ft"])
def test_batch_norms_of_the_base_see_the_chosen_rows_alone(name):
    student, teacher = pair()
    method = SAKD(base=base_of(name))
    helpers = helpers_of(method, student, teacher)
    for rows in ([], [3], [1, 3, 4]):
        wanted = torch.zeros(8, 2, dtype=torch.bool)
        wanted[rows, 0] = True
        sample = chosen_as(method, helpers, batch(), wanted)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        expected = deepcopy(helpers["base"])
        if rows:
            method.base.losses(
                picked(mine, rows), picked(theirs, rows), of_rows(sample, rows), expected
            )
        method.losses(mine, theirs, sample, helpers)
        for key, value in helpers["base"].state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[key], msg=key)


def test_one_row_of_one_pixel_has_no_batch_norm_to_go_through():
    # At 16 x 16 the last stage of both is one pixel: one row of it has no variance.
    torch.manual_seed(0)
    student, teacher = (build("mobilenet_v2_x0_5", 10) for _ in range(2))
    teacher.eval().requires_grad_(False)
    for base in (FitNet(stage="stage4"), FT(), OFD(), ReviewKD()):
        method = SAKD(base=base)
        helpers = helpers_of(method, student, teacher)
        wanted = torch.zeros(8, decisions(helpers), dtype=torch.bool)
        wanted[2] = True
        sample = chosen_as(method, helpers, batch(), wanted)
        learner = Learner(student, method, helpers).train()
        losses, _ = learner(sample, answer(method, teacher, sample), 1.0)
        total(losses).backward()
        assert bool(total(losses).isfinite())
        spots = [*method.base.spots(student.stages, teacher.stages)]
        zero = spots if base.joint or len(spots) == 1 else ["stage4"]
        assert all(bool(losses[spot] == 0) for spot in zero)
        assert bool(losses["logits"] > 0)


# What is trained, and what is not.


@pytest.mark.parametrize("mode", ["adaptive", "reverse"])
@pytest.mark.parametrize("name", ["at", "crd", "kd", "reviewkd", "mlkd"])
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
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in student.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())
    network = [*student.parameters(), *teacher.parameters(), *helpers["base"].parameters()]
    losses.pop("route").backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in network)
    routing = [parameter.grad.clone() for parameter in helpers["routing"].parameters()]
    total(losses).backward()
    for parameter, gradient in zip(helpers["routing"].parameters(), routing, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["at", "sp", "crd", "dkd"])
def test_the_order_of_the_batch_changes_no_decision_and_no_routing_loss(name):
    student, teacher = (network.double() for network in pair())
    method = SAKD(base=base_of(name))
    helpers = helpers_of(method, student, teacher).double()
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])

    def double(sample):
        looks = {look: double(other) for look, other in sample.looks.items()}
        return replace(sample, pixels=sample.pixels.double(), looks=looks)

    sample = replace(double(batch()), ids=torch.arange(8) * 7 + 2)
    routes, gates = [], []
    for one in (sample, of_rows(sample, order)):
        network, own = deepcopy(student), deepcopy(helpers)
        mine, theirs = seen(method, network, one), answer(method, teacher, one)
        routes.append(method.losses(mine, theirs, one, own)["route"])
        uniform = own["selection"].uniform(one, 2 * decisions(own))
        gates.append(own["routing"].gates(mine.embedding, theirs.embedding, uniform, 5.0))
        if len(gates) == 1:
            assert 0 < gates[0].mean() < 1
    assert torch.equal(gates[0][order], gates[1])
    torch.testing.assert_close(*routes, rtol=1e-10, atol=0)  # float64, other order of sums


@pytest.mark.parametrize(
    ("base", "gamma"),
    [(AT(), 2.0), (RelationalKD(), 2.0), (VID(), 2.0), (FitNet(), 1.0), (CRD(**SMALL), 1.0)],
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


def test_kd_at_the_logits_has_its_own_temperature_and_weight_by_epoch():
    student, teacher = pair()
    method = SAKD(base=PKT(), temperature=2.0, kd_weight=((0, 1.0), (3, 0.25)))
    helpers = helpers_of(method, student, teacher)
    force(helpers, 1)
    for epoch, weight in ((0, 1.0), (3, 0.25)):
        sample = replace(batch(), epoch=epoch)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        losses = method.losses(mine, theirs, sample, helpers)
        expected = weight * soft_cross_entropy(mine.logits, theirs.logits, 2.0)
        torch.testing.assert_close(losses["logits"], expected)


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
    rows = memory.drawn(Batch(None, LABELS[ids], ids, 0, 0), 16, relaxed=False)
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
    (AT(), attention, STAGES, 2.0, ("resnet8", "resnet8x4")),
    (AT(), attention, STAGES, 2.0, ("vgg8", "wrn_16_1")),
    (FitNet(weight=1.0), hint, STAGES[1:2], 1.0, ("resnet8", "resnet8x4")),
    (FitNet(weight=1.0), hint, STAGES[1:2], 1.0, ("wrn_16_1", "vgg8")),
    (SP(), grams, STAGES[2:], 1.0, ("resnet8", "resnet14")),
    (SP(), grams, [("stage3", "stage4")], 1.0, ("wrn_16_1", "vgg8")),
    (RelationalKD(), relations, EMBEDDING, 2.0, ("resnet8", "resnet8x4")),
    (CRD(**SMALL), contrast, EMBEDDING, 1.0, ("resnet8", "resnet8x4")),
]


def name_of(value):
    return "<-".join(value) if isinstance(value, tuple) else getattr(value, "name", "")


@pytest.mark.parametrize(("base", "distance", "spots", "gamma", "names"), STEPS, ids=name_of)
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
        for key, value in theirs.state_dict().items():
            # float64: rounding of 1e-16, which three steps with large weights carry on.
            torch.testing.assert_close(
                mine.state_dict()[key], value, rtol=1e-8, atol=1e-10, msg=key
            )


# What it begins with.


@pytest.mark.parametrize(
    ("student", "teacher", "homogeneous"),
    [
        ("resnet32", "resnet110", True),
        ("resnet8x4", "resnet32x4", True),
        ("resnet20", "resnet56", True),
        ("vgg8", "vgg13", True),
        ("wrn_16_2", "wrn_40_2", True),
        ("resnet20", "resnet110", True),
        ("resnet32", "resnet32x4", False),
        ("mobilenet_v2_x1_0", "vgg13", False),
        ("shufflenet_v1", "wrn_40_2", False),
        ("shufflenet_v2", "resnet32x4", False),
        ("vgg8", "cifar_resnet50", False),
        ("mobilenet_v2_x1_0", "cifar_resnet50", False),
        ("vgg8", "cifar_resnet18", False),  # embeddings alike, maps not
    ],
)
def test_networks_of_one_family_are_those_of_the_official_configurations(
    student, teacher, homogeneous
):
    with torch.device("meta"):
        shapes = [measure(build(name, 100), (32, 32)) for name in (student, teacher)]
    for given, expected in ((None, homogeneous), (True, True), (False, False)):
        # The embedding's adapters are small; what is asked is the same.
        helpers = SAKD(base=PKT(), homogeneous=given).helpers(*shapes)
        bias = helpers["routing"].policy.bias
        assert bool((bias[0::2] > 9).all()) == expected
        assert bool((bias[0::2] > 9).any()) == expected
        assert bool((bias[1::2].abs() < 1).all())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_base_is_refused(name):
    why = {
        "simkd": "leaves the student's classifier untrained",
        "jacobian": "cannot be given some of them",
        "sakd": "'sakd'",
    }
    with pytest.raises(ValidationError, match=why.get(name, "reads nothing of the teacher")):
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
    method.adopt(helpers, found)
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


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", ["adaptive", "random", "reverse"])
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


@pytest.mark.parametrize("name", ["at", "sp", "crd", "reviewkd"])
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


def taught_beside(method, student, teacher, colours=(None, None)):
    """The learner of a method that trains the teacher, as a run's preparation makes it.

    `colours` are the (mean, std) that the student's pixels have, and that the teacher wants.
    """
    helpers = helpers_of(method, student, teacher)
    live = LiveTeacher(teacher, method.needs(), student=colours[0], own=colours[1], trained=True)
    return Learner(student, method, helpers, live).train()


@pytest.mark.parametrize("name", ["at", "crd", "kd", "reviewkd", "combine"])
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
    for key, parameter in learner.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
    optimised = [
        p for group in build_optimiser(Optim(), learner).param_groups for p in group["params"]
    ]
    assert len({*optimised}) == len(optimised)
    assert {*parameters, *student.parameters()} <= {*optimised}


@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("name", ["at", "crd", "kd"])
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
        for key, value in twin.state_dict().items():  # one pass in training mode, and no more
            torch.testing.assert_close(network.state_dict()[key], value, msg=key)
    theirs = F.cross_entropy(said[1], sample.targets)
    torch.testing.assert_close(losses["teacher"], theirs)
    alone = twins[gate].eval()(pixels[gate])
    missing = 0.0 if gate else 4.0  # half of 8
    torch.testing.assert_close(
        losses["route"], F.cross_entropy(alone, sample.targets) + missing, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(losses["label"], F.cross_entropy(logits, sample.targets))


@pytest.mark.parametrize("base", [MLKD(), STKD(clean_kd=1.0)], ids=name_of)
def test_mode_both_works_for_bases_with_several_looks(base):
    student, teacher = pair()
    sample = batch()
    learner = taught_beside(SAKD(base=base, mode="both"), student, teacher)
    losses, _ = learner(sample, None, 1.0)
    assert bool(total(losses).isfinite())


# Looks, precisions, caches, and one decision for several spots.


@pytest.mark.parametrize(
    "base",
    [*(base_of(name) for name in BASES), STKD(teacher="mixed_output")],
    ids=lambda base: f"{base.name}-{getattr(base, 'teacher', '')}".rstrip("-"),
)
def test_kd_and_the_route_compare_what_both_networks_say_of_the_same_pixels(base):
    looks = SAKD(base=base).looks()
    assert looks.student[0] == looks.teacher[0]


@pytest.mark.parametrize("of_teacher", [False, True])
@pytest.mark.parametrize("of_student", [False, True])
@pytest.mark.parametrize("name", ["at", "fitnet", "sp", "crd", "kd", "combine", "reviewkd"])
def test_each_network_may_run_in_bfloat16(name, of_student, of_teacher):
    student, teacher = pair()
    method, sample = SAKD(base=base_of(name)), batch()
    learner = Learner(
        student, method, helpers_of(method, student, teacher), autocast=of_student
    ).train()
    theirs = source(method, teacher, bfloat16=of_teacher)(sample)
    losses, logits = learner(sample, theirs, 1.0)
    assert logits.dtype == (torch.bfloat16 if of_student else torch.float32)
    for spot, loss in losses.items():
        assert loss.dtype == torch.float32, spot
        assert bool(loss.isfinite()), spot
    total(losses).backward()
    for key, parameter in learner.named_parameters():
        assert bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", BASES)
def test_losses_in_bfloat16_are_float32_and_finite(name):
    student, teacher = pair()
    method, sample = SAKD(base=base_of(name)), batch()
    learner = Learner(student, method, helpers_of(method, student, teacher), autocast=True)
    losses, _ = learner.train()(sample, source(method, teacher, bfloat16=True)(sample), 1.0)
    for spot, loss in losses.items():
        assert loss.dtype == torch.float32, spot
        assert bool(loss.isfinite()), spot


@pytest.mark.parametrize("name", BASES)
def test_a_batch_may_be_one_sample(name):
    student, teacher = pair()
    for gate in (0, 1):
        method, sample = SAKD(base=base_of(name)), batch(1)
        learner = Learner(student, method, helpers_of(method, student, teacher)).train()
        force(learner.helpers, gate)
        losses, _ = learner(sample, answer(method, teacher, sample), 1.0)
        total(losses).backward()
        for key, parameter in learner.named_parameters():
            if parameter.requires_grad:
                assert bool(parameter.grad.isfinite().all()), key


def test_the_route_is_the_teacher_s_whatever_normalisation_it_was_trained_with():
    student, teacher = pair()
    method, sample = SAKD(gamma=1.0), batch()
    helpers = helpers_of(method, student, teacher)
    force(helpers, 1)
    of_student, own = ((0.5,) * 3, (0.25,) * 3), ((0.4, 0.5, 0.3), (0.2, 0.3, 0.25))
    live = LiveTeacher(teacher, method.needs(), student=of_student, own=own)
    theirs = live(sample)
    assert not torch.equal(theirs.logits, teacher(sample.pixels))
    losses = method.losses(seen(method, student, sample), theirs, sample, helpers)
    assert torch.equal(losses["route"], F.cross_entropy(theirs.logits, sample.targets))


@pytest.mark.parametrize("base", [CRD(**SMALL), RelationalKD(), KD(), SKD(radius=2.0)], ids=name_of)
def test_what_a_cache_holds_is_enough_for_bases_on_embeddings_and_logits(base):
    student, teacher = pair()
    method, sample = SAKD(base=base), batch()
    assert Signal.LIVE not in method.needs()
    whole = teacher.outputs(sample.pixels, Signal.EMBEDDING)
    stored = Outputs(whole.logits, embedding=whole.embedding).by(teacher.classifier)
    told, mine = [], seen(method, student, sample)
    for theirs in (stored, answer(method, teacher, sample)):
        helpers = helpers_of(method, student, teacher)
        told.append(method.losses(mine, theirs, sample, helpers))
    assert told[0].keys() == told[1].keys()
    assert all(torch.equal(told[0][spot], told[1][spot]) for spot in told[0])


@pytest.mark.parametrize("base", [ReviewKD(), IRG(), Combine(combine=(IRG(), CRD(**SMALL)))])
def test_a_base_that_reads_several_spots_at_once_has_one_decision_for_all(base):
    student, teacher = pair()
    method = SAKD(base=base)
    helpers = helpers_of(method, student, teacher)
    assert helpers["selection"].names == (base.label, "logits")
    assert helpers["routing"].policy.out_features == 4
    between = [s for s in method.spots(student.stages, teacher.stages) if s != "logits"]
    assert [*helpers["routing"].to_teacher] == between
    for everywhere in (0, 1):
        wanted = torch.zeros(8, 2, dtype=torch.bool)
        wanted[:4, 0] = True
        wanted[:, 1] = bool(everywhere)
        sample = chosen_as(method, helpers, batch(), wanted)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        losses = method.losses(mine, theirs, sample, helpers)
        own = losses["logits"] - everywhere * soft_cross_entropy(mine.logits, theirs.logits, 4.0)
        assert all(bool(losses[spot] > 0) for spot in between)
        if "logits" in base.spots(student.stages, teacher.stages):
            vertex = F.mse_loss(mine.logits[:4], theirs.logits[:4])
            torch.testing.assert_close(own, 0.1 * vertex / 2, rtol=1e-3, atol=1e-6)


def test_mode_names_are_those_that_are_tested_here():
    modes = get_args(SAKD.model_fields["mode"].annotation)
    assert modes == ("adaptive", "always", "random", "reverse", "both")


def test_outputs_are_not_changed_in_place():
    for names, side in (
        (("resnet8", "resnet8x4"), 16),
        (("torchvision/mobilenet_v3_small", "torchvision/resnet18"), 64),
    ):
        student, teacher = built(*names)
        method, sample = SAKD(), batch(4, side)
        helpers = helpers_of(method, student, teacher, side)
        mine, theirs = seen(method, student, sample), answer(method, teacher, sample)
        held = [
            value
            for outputs in (mine, theirs)
            for value in (outputs.logits, outputs.embedding, *outputs.features.values())
        ]
        before = [value.detach().clone() for value in held]
        losses = method.losses(mine, theirs, sample, helpers)
        total(losses).backward()
        for value, kept in zip(held, before, strict=True):
            assert torch.equal(value, kept)
