"""The policy of spot-adaptive distillation, the network it learns from, and what it counts."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Shapes, Signal
from raykd.methods.at import AT
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.feature_maps import Regressor
from raykd.methods.fitnet import FitNet
from raykd.methods.irg import IRG
from raykd.methods.kd import KD
from raykd.methods.pkt import PKT
from raykd.methods.sakd import SAKD
from raykd.methods.sakd_policy import Selection, choose, gumbel, route_loss, segments
from raykd.models import build, measure
from raykd.teachers.source import LiveTeacher
from tests.each import each
from tests.methods.sakd_cases import (
    SMALL,
    answer,
    assert_state,
    assert_trains,
    base_of,
    decisions,
    force,
    helpers_of,
    name_of,
    networks,
    of_rows,
    pixels_of,
    seen,
    state,
)
from tests.small import batch, pair
from tests.tiers import slow_but

EVERY = Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES | Signal.LIVE | Signal.CLASSIFIER
# Student, teacher, pixels a side: equal shapes, equal stages, other sizes, other numbers of stages.
PAIRS = [
    ("resnet8", "resnet14", 16),
    ("resnet8", "resnet8x4", 16),
    ("mobilenet_v2_x0_5", "vgg8", 32),
    ("shufflenet_v1", "wrn_16_1", 32),
    ("resnet8", "vgg8", 16),
    ("torchvision/mobilenet_v3_small", "torchvision/resnet18", 64),
    ("torchvision/resnet18", "torchvision/resnet18", 32),
]
OTHERS = [FitNet(), CRD(**SMALL), KD()]  # one spot in the middle, the embedding, no spot at all
# Adapters and segments follow from the spots: a base with fewer of them needs fewer pairs.
QUICK_ROUTES = [(PAIRS[2], AT()), (PAIRS[1], OTHERS[1]), (PAIRS[1], OTHERS[2])]
ROUTES = slow_but(
    [
        *((names, AT()) for names in PAIRS),
        *((names, base) for base in OTHERS for names in PAIRS[1:3]),
    ],
    QUICK_ROUTES,
)


def router_of(base, student, teacher, side, **options):
    helpers = helpers_of(SAKD(base=base, **options), student, teacher, side)
    return helpers["routing"].to(memory_format=torch.channels_last)


def answered(network, pixels):
    with torch.no_grad():
        return network.outputs(pixels, EVERY)


def paths(rows, router, seed=0):
    """Gates [rows, R]: the teacher everywhere, the student everywhere, then coins."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.randint(0, 2, (rows, router.policy.out_features // 2), generator=generator)
    gates[0], gates[1] = 1, 0
    return gates.to(router.policy.weight.dtype)


# The policy.


def test_gumbel_noise_is_minus_log_of_minus_log_and_finite_at_0():
    uniform = torch.tensor([0.0, 2**-24, 0.25, 0.5, 1 - 2**-24], dtype=torch.float64)
    expected = [-math.log(-math.log(u + 1e-20) + 1e-20) for u in uniform.tolist()]
    torch.testing.assert_close(gumbel(uniform), torch.tensor(expected, dtype=torch.float64))
    assert bool(gumbel(uniform.float()).isfinite().all())


def test_a_choice_is_0_or_1_and_its_gradient_is_that_of_the_softmax():
    heat = 0.5
    torch.manual_seed(0)
    scores = torch.randn(50, 3, 2, dtype=torch.float64, requires_grad=True)
    noise = gumbel(torch.rand(50, 3, 2, dtype=torch.float64))
    weights = torch.randn(50, 3, dtype=torch.float64)
    gates = choose(scores, noise, heat)
    (gradient,) = torch.autograd.grad((weights * gates).sum(), scores)
    soft = F.softmax((scores + noise) / heat, dim=2)
    hard = F.one_hot(soft.argmax(2), 2).double() + soft - soft.detach()
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gates, hard.detach()[:, :, 0].round())
    (expected,) = torch.autograd.grad((weights * hard[:, :, 0]).sum(), scores)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_a_choice_in_float32_is_0_or_1_to_the_last_bit():
    torch.manual_seed(0)
    scores = 3 * torch.randn(100_000, 1, 2)
    gates = choose(scores, gumbel(torch.rand_like(scores)), 5.0)
    assert bool(((gates == 0) | (gates == 1)).all())
    assert bool((((1 - gates) == 0) | ((1 - gates) == 1)).all())


def test_the_teacher_is_chosen_as_often_as_the_softmax_says_at_any_temperature():
    count = 100_000
    scores = torch.tensor([[1.2, -0.3], [0.0, 0.0], [-2.0, 0.5], [4.0, 0.0]])
    selection, every = Selection(["one"] * 4, 10), Batch(None, None, torch.arange(count), 0, 0)
    noise = gumbel(selection.uniform(every, 8)).view(count, 4, 2)
    cold, warm = (choose(scores.expand_as(noise), noise, heat) for heat in (0.1, 5.0))
    assert torch.equal(cold, warm)
    expected = F.softmax(scores.double(), dim=1)[:, 0]
    error = (expected * (1 - expected) / count).sqrt()
    # Five standard errors: 1 in 400,000 for each of the four.
    assert bool(((warm.double().mean(0) - expected).abs() < 5 * error).all())


def test_ten_more_for_the_teacher_is_the_teacher_nearly_everywhere():
    both = networks("resnet8", "resnet14", 16)
    router = router_of(AT(), *both, 16, homogeneous=True)
    start = router_of(AT(), *both, 16, homogeneous=False)
    difference = router.policy.bias - start.policy.bias
    assert torch.equal(router.policy.weight, start.policy.weight)
    torch.testing.assert_close(difference, torch.tensor([10.0, 0.0] * 4))
    nn.init.zeros_(router.policy.weight)
    router.policy.bias.data = difference.detach()
    uniform = torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0))
    gates = router.gates(torch.randn(20_000, 64), torch.randn(20_000, 64), uniform, 5.0)
    assert gates.mean() > 0.999


def test_the_policy_reads_the_teacher_first_and_answers_for_the_teacher_first():
    torch.manual_seed(0)
    shapes = Shapes(10, 3, {"stage1": (2, 4, 4)}), Shapes(10, 5, {"stage1": (4, 4, 4)})
    router = SAKD(base=AT()).helpers(*shapes)["routing"].double()
    assert router.policy.weight.shape == (4, 8)
    mine, theirs = torch.randn(30, 3).double(), torch.randn(30, 5).double()
    uniform = torch.rand(30, 4).double()
    mine.requires_grad_()
    theirs.requires_grad_()
    gates = router.gates(mine, theirs, uniform, 5.0)
    weight, bias = router.policy.weight, router.policy.bias
    soft = []
    for n in range(30):
        p = [
            sum(weight[k, d] * theirs[n, d].detach() for d in range(5))
            + sum(weight[k, 5 + d] * mine[n, d].detach() for d in range(3))
            + bias[k]
            - torch.log(-torch.log(uniform[n, k]))
            for k in range(4)
        ]
        soft += [torch.softmax(torch.stack(p[2 * r : 2 * r + 2]) / 5, 0)[0] for r in range(2)]
    soft = torch.stack(soft).view(30, 2)
    assert torch.equal(gates, (soft > 0.5).double())
    assert 0 < gates.mean() < 1
    trained = [weight, bias]
    for got, expected in zip(
        torch.autograd.grad(gates.square().sum(), trained),
        torch.autograd.grad((2 * gates.detach() * soft).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@each(
    ("student", "teacher", "homogeneous"),
    slow_but(
        [
            ("resnet32", "resnet110", True),
            ("resnet8x4", "resnet32x4", True),
            ("resnet20", "resnet56", True),
            ("vgg8", "vgg13", True),
            ("wrn_16_2", "wrn_40_2", True),
            ("resnet32", "resnet32x4", False),
            ("mobilenet_v2_x1_0", "vgg13", False),
            ("shufflenet_v1", "wrn_40_2", False),
            ("shufflenet_v2", "resnet32x4", False),
            ("vgg8", "cifar_resnet50", False),
            ("vgg8", "cifar_resnet18", False),  # equal embeddings, other maps
        ],
        [("vgg8", "vgg13", True), ("vgg8", "cifar_resnet18", False)],
    ),
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


@each("name", ["at", "crd"])
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


# The adapters.


def test_resnet56_and_resnet20_with_three_stages_have_a_policy_of_1032_numbers():
    with torch.device("meta"):
        student, teacher = build("resnet20", 100), build("resnet56", 100)
        shapes = measure(student, (32, 32)), measure(teacher, (32, 32))
    router = SAKD(base=AT()).helpers(*shapes)["routing"]
    assert sum(p.numel() for p in router.policy.parameters()) == 1032
    assert router.policy.out_features == 2 * 4
    assert [*router.to_teacher] == [*router.to_student] == ["stage1", "stage2", "stage3"]


@each(
    ("student", "teacher", "side", "relu"),
    slow_but(
        [*((*names, True) for names in PAIRS), (*PAIRS[0], False)],
        [(*PAIRS[2], True), (*PAIRS[0], False)],
    ),
)
def test_adapters_bring_maps_to_the_other_network_s_shape(student, teacher, side, relu):
    both = networks(student, teacher, side)
    router = router_of(AT(), *both, side, adapter_relu=relu)
    mine, theirs = (answered(network, pixels_of(2, side)).features for network in both)
    stages = [name for name in mine if name in theirs and name.startswith("stage")]
    assert [*router.to_teacher] == [*router.to_student] == stages
    for stage in stages:
        to_teacher, to_student = router.to_teacher[stage], router.to_student[stage]
        assert to_teacher(mine[stage]).shape == theirs[stage].shape
        assert to_student(theirs[stage]).shape == mine[stage].shape
        for adapter in (to_teacher, to_student):
            assert isinstance(adapter, Regressor)
            kinds = [type(part) for part in adapter]
            assert kinds[0] in (nn.Conv2d, nn.ConvTranspose2d)
            assert kinds[1:] == [nn.BatchNorm2d, *([nn.ReLU] if relu else [])]


def test_adapters_of_embeddings_are_linear():
    student, teacher = networks("resnet8", "resnet8x4", 16)
    router = router_of(CRD(**SMALL), student, teacher, 16)
    assert [*router.to_teacher] == [*router.to_student] == ["embedding"]
    assert type(router.to_teacher["embedding"]) is nn.Linear
    assert router.to_teacher["embedding"].weight.shape == (256, 64)
    assert router.to_student["embedding"].weight.shape == (64, 256)
    assert router.policy.out_features == 2 * 2


def test_adapters_fit_maps_that_are_not_square():
    for shape_s, shape_t in (
        ((4, 3, 2), (5, 3, 2)),
        ((4, 4, 6), (5, 2, 3)),
        ((4, 2, 3), (5, 1, 1)),
        ((4, 2, 3), (5, 1, 2)),
    ):
        shapes = (Shapes(10, 6, {"stage1": shape}) for shape in (shape_s, shape_t))
        router = SAKD(base=AT()).helpers(*shapes)["routing"]
        assert router.to_teacher["stage1"](torch.randn(4, *shape_s)).shape[1:] == shape_t
        assert router.to_student["stage1"](torch.randn(4, *shape_t)).shape[1:] == shape_s


# The network of two networks.


@each(
    "name",
    slow_but(dict.fromkeys(name for names in PAIRS for name in names[:2]), ["resnet8", "wrn_16_1"]),
)
def test_segments_in_order_are_the_network(name):
    torch.manual_seed(0)
    network = build(name, 10).eval()
    pixels = pixels_of(2, 32)
    stages = [*network.stages]
    expected = network(pixels)
    for spots in ([], stages[-1:], stages, ["embedding"], [stages[1], "embedding"]):
        parts = segments(network, spots)
        assert len(parts) == len(spots) + 1
        x = pixels
        for part in parts:
            for module in part:
                x = module(x)
        assert torch.equal(x, expected)


@each(("names", "base"), ROUTES, ids=name_of)
def test_a_row_that_takes_one_network_throughout_gets_its_logits_bit_for_bit(names, base):
    (mine, theirs), side = networks(*names), names[2]
    router = router_of(base, mine, theirs, side)
    pixels = pixels_of(4, side)
    known = answered(theirs, pixels)
    gates = paths(4, router)
    routed = router(mine, pixels, known, gates)
    alone = answered(mine.eval(), pixels).logits
    assert torch.equal(routed[0], known.logits[0])
    assert torch.equal(routed[1], alone[1])
    for gate, expected in ((1.0, known.logits), (0.0, alone)):
        everywhere = torch.full_like(gates, gate)
        assert torch.equal(router(mine, pixels, known, everywhere), expected)


def along(student, teacher, router, image, gates):
    """The logits of one image [1, 3, H, W], from one network or the other at every spot."""
    with torch.no_grad():
        u, v = image, image
        spots = [*router.spots.items()]
        ours, others = (
            segments(student, [*router.spots]),
            segments(teacher, [*dict(spots).values()]),
        )
        for number, (spot, _) in enumerate(spots):
            for module in ours[number]:
                u = module(u)
            for module in others[number]:
                v = module(v)
            if gates[number]:
                u = router.to_student[spot](v)
            else:
                v = router.to_teacher[spot](u)
        for module in ours[-1]:
            u = module(u)
        for module in others[-1]:
            v = module(v)
        return v if gates[-1] else u


@each(
    ("names", "base"),
    slow_but([*((names, AT()) for names in PAIRS[1:4]), *QUICK_ROUTES[1:]], QUICK_ROUTES),
    ids=name_of,
)
def test_every_row_goes_its_own_way(names, base):
    (mine, theirs), side = (network.double() for network in networks(*names)), names[2]
    # In evaluation mode the adapters' batch norms do not look at the other rows.
    router = router_of(base, mine, theirs, side).double().eval()
    pixels = pixels_of(6, side).double()
    gates = paths(6, router)
    routed = router(mine, pixels, answered(theirs, pixels), gates)
    mine.eval()
    for n in range(6):
        expected = along(mine, theirs, router, pixels[n : n + 1], gates[n].tolist())
        torch.testing.assert_close(routed[n : n + 1], expected, rtol=1e-9, atol=1e-10)


@each(("names", "base"), ROUTES, ids=name_of)
def test_the_routing_loss_trains_policy_and_adapters_and_nothing_else(names, base):
    (mine, theirs), (*_, side), size = networks(*names), names, 4
    router = router_of(base, mine, theirs, side)
    sample = Batch(pixels_of(size, side), torch.arange(size), torch.arange(size), 0, 0)
    known, outputs = answered(theirs, sample.pixels), mine.outputs(sample.pixels, EVERY)
    before = state(mine), state(theirs)
    told = [(name, value) for said in (outputs, known) for name, value in said.features.items()]
    copies = [value.detach().clone() for _, value in told]
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(size, router.policy.out_features, generator=generator)
    gates = router.gates(outputs.embedding, known.embedding, uniform, 5.0)
    assert mine.training
    router.loss(outputs, known, sample, gates, 2.0).backward()
    for network in (mine, theirs):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert_trains(router)
    assert_state(mine, before[0])
    assert_state(theirs, before[1])
    assert all(module.training for module in mine.modules())
    assert not any(module.training for module in theirs.modules())
    for (name, value), copy in zip(told, copies, strict=True):
        assert torch.equal(value, copy), name
    # What the student's own losses need is still there.
    outputs.logits.sum().backward()


def test_a_teacher_that_comes_to_its_spots_in_another_order_is_refused():
    maps = {f"stage{number}": (4, 8, 8) for number in range(1, 5)}
    student = Shapes(10, 8, {stage: maps[stage] for stage in ("stage1", "stage2")})
    method = SAKD(base=Combine(combine=(IRG(), FitNet())))
    with pytest.raises(ConfigError, match=r"student's stage1, stage2, embedding with .*stage3, st"):
        method.helpers(student, Shapes(10, 8, maps))


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such stage")


@each(("broken", "training"), [("student", True), ("teacher", False), (None, True)])
def test_the_student_s_mode_is_what_it_was(training, broken):
    mine, theirs = networks("resnet8", "resnet8x4", 16)
    router = router_of(AT(), mine, theirs, 16)
    pixels = pixels_of(4, 16)
    known = answered(theirs, pixels)
    mine.train(training)
    arguments = mine, pixels, known, torch.ones(4, 4)
    if broken:
        network = mine if broken == "student" else theirs
        network.stages["stage3"] = Broken()
        with pytest.raises(RuntimeError, match="no such stage"):
            router(*arguments)
    else:
        router(*arguments)
    assert mine.training is training
    assert all(module.training is training for module in mine.modules())
    assert not theirs.training


def strided(pixels):
    return torch.stack([pixels, pixels], dim=4)[..., 0]


@pytest.mark.parametrize(
    ("student", "teacher", "side", "turn"),
    slow_but(
        [(*PAIRS[3], strided), (*PAIRS[1], torch.Tensor.contiguous)],
        [(*PAIRS[1], torch.Tensor.contiguous)],
    ),
)
def test_pixels_may_lie_in_memory_in_any_order(student, teacher, side, turn):
    mine, theirs = networks(student, teacher, side)
    router = router_of(AT(), mine, theirs, side)
    pixels = pixels_of(4, side)
    expected = router(mine, pixels, answered(theirs, pixels), paths(4, router))
    for module in (mine, theirs, router):
        module.to(memory_format=torch.contiguous_format)
    pixels = turn(pixels)
    assert not pixels.is_contiguous(memory_format=torch.channels_last)
    gates = paths(4, router).requires_grad_()
    routed = router(mine, pixels, answered(theirs, pixels), gates)
    torch.testing.assert_close(routed, expected, rtol=1e-3, atol=1e-4)  # sums in another order
    routed.square().sum().backward()
    assert bool(gates.grad.isfinite().all())


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


# The routing loss.


def logits(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 10, generator=generator, dtype=torch.float64)


def test_the_cross_entropy_is_multiplied_where_it_is_above_the_student_s_and_divided_below():
    gamma = 2.0
    targets = torch.arange(8)
    better = 5 * F.one_hot(targets, 10).double() + logits(8, 0)
    worse, gates = logits(8, 0), torch.ones(8, dtype=torch.float64)
    for routed, student, factor in (
        (worse, better, gamma),
        (better, worse, 1 / gamma),
        (worse, worse, 1.0),
    ):
        routed = routed.clone().requires_grad_()
        plain = F.cross_entropy(routed, targets)
        loss = route_loss(routed, student, targets, gates, gamma)
        torch.testing.assert_close(loss, factor * plain)
        torch.testing.assert_close(
            torch.autograd.grad(loss, routed), torch.autograd.grad(factor * plain, routed)
        )


def test_the_hinge_asks_for_the_teacher_in_half_of_the_batch_and_is_not_divided():
    size = 7
    targets, routed, student = torch.arange(size), logits(size, 0), logits(size, 1)
    plain = F.cross_entropy(routed, targets)
    for taught in range(size + 1):
        gates = torch.zeros(size, dtype=torch.float64)
        gates[:taught] = 1.0
        gates.requires_grad_()
        loss = route_loss(routed, student, targets, gates, 1.0)
        missing = max(0.0, size / 2 - taught)
        torch.testing.assert_close(loss, plain + missing)
        assert (loss == plain) == (taught >= size / 2)
        (gradient,) = torch.autograd.grad(loss, gates)
        assert torch.equal(gradient, torch.full_like(gates, -1.0 if missing else 0.0))


def test_labels_of_mixed_samples_are_read_as_shares():
    shares = F.softmax(logits(6, 2), dim=1)
    routed, student = logits(6, 0), logits(6, 1)
    expected = -(shares * F.log_softmax(routed, dim=1)).sum(1).mean()
    loss = route_loss(routed, student, shares, torch.ones(6, dtype=torch.float64), 1.0)
    torch.testing.assert_close(loss, expected)


@each(
    "taught",
    [
        [1, 1, 1, 0, 0, 0, 0, 0],  # the first worker has enough, all together have not
        [1, 1, 1, 1, 0, 0, 0, 0],  # just enough, and the second worker has none
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
)
def test_two_workers_average_to_the_gradients_of_one(taught):
    routed, student = logits(8, 0), logits(8, 1)
    # The first half is routed worse than the student answers, the second one better.
    routed[:4, 0], student[4:, 0] = 4.0, 4.0
    targets = torch.arange(1, 9)
    routed.requires_grad_()
    gates = torch.tensor(taught, dtype=torch.float64, requires_grad=True)
    inputs = routed, gates
    whole = route_loss(routed, student, targets, gates, 2.0)
    halves = slice(0, 4), slice(4, 8)
    told = []

    def tell(rows):
        told.append(rows)
        return rows

    def loss_of(part, gather):
        return route_loss(routed[part], student[part], targets[part], gates[part], 2.0, gather)

    for part in halves:
        loss_of(part, tell)
    everything = torch.cat(told)
    assert not everything.requires_grad
    mean = sum(loss_of(part, lambda rows: everything) for part in halves) / 2
    torch.testing.assert_close(mean, whole)
    for got, expected in zip(
        torch.autograd.grad(mean, inputs), torch.autograd.grad(whole, inputs), strict=True
    ):
        torch.testing.assert_close(got, expected)


# The counts.


def ids_of(*ids, epoch=0):
    return Batch(None, None, torch.tensor(ids), 0, epoch)


def test_a_sample_s_noise_follows_from_its_id_and_the_epoch_alone():
    torch.manual_seed(0)
    selection = Selection(["a", "b", "logits"], 10)
    noise = selection.uniform(ids_of(5, 9, 0, 31), 6)
    assert noise.shape == (4, 6)
    assert bool(((noise >= 0) & (noise < 1)).all())
    assert len(noise.unique()) == 24
    assert torch.equal(selection.uniform(ids_of(31, 5), 6), noise[[3, 0]])
    assert not torch.equal(selection.uniform(ids_of(5, 9, 0, 31, epoch=1), 6), noise)
    torch.manual_seed(0)
    assert Selection(["other"], 3).seed == selection.seed
    assert Selection(["other"], 3).seed != selection.seed


def test_shares_are_those_of_a_hand_count():
    selection = Selection(["stage1", "logits"], 4)
    first = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.bool)
    second = torch.tensor([[1, 1], [0, 1]], dtype=torch.bool)
    selection.add(first, torch.tensor([0, 0, 2]))
    selection.add(second, torch.tensor([3, 2]))
    expected = [[2, 0, 0, 1], [1, 0, 1, 1], [2, 0, 2, 1]]
    assert selection.counts.tolist() == expected
    assert selection.metrics(selection.counts) == {
        "selected_stage1": 60.0,
        "selected_logits": 60.0,
        "selected_by_class": {
            "stage1": [100.0, None, 0.0, 100.0],
            "logits": [50.0, None, 50.0, 100.0],
        },
    }
    assert "counts" not in selection.state_dict()


def test_no_sample_at_all_is_a_share_of_0():
    selection = Selection(["logits"], 2)
    told = selection.metrics(selection.counts)
    assert told == {"selected_logits": 0.0, "selected_by_class": {"logits": [None, None]}}


def test_every_gate_is_pulled_alike_however_uneven_the_workers_shares_are():
    sizes, gamma = (4, 3, 3), 1.0
    generator = torch.Generator().manual_seed(0)
    shares = []
    for size in sizes:
        routed, student = (torch.randn(size, 5, generator=generator) for _ in range(2))
        targets = torch.randint(0, 5, (size,), generator=generator)
        shares.append((routed, student, targets, torch.full((size,), 0.1, requires_grad=True)))
    rows = []
    for routed, student, targets, gates in shares:  # what each worker would send
        route_loss(routed, student, targets, gates, gamma, lambda mine: rows.append(mine) or mine)
    for (routed, student, targets, gates), size in zip(shares, sizes, strict=True):
        loss = route_loss(routed, student, targets, gates, gamma, lambda mine: torch.cat(rows))
        # The loop weighs a worker by its samples, and the mean over workers is taken.
        (loss * (size * len(sizes) / sum(sizes)) / len(sizes)).backward()
        torch.testing.assert_close(gates.grad, -torch.ones(size))
