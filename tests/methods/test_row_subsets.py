"""Losses on chosen rows: shares of the batch, few rows or none, and what they leave alone."""

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.types import Outputs
from raykd.methods.base import soft_cross_entropy
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.ft import FT
from raykd.methods.helper_kinds import Shared
from raykd.methods.irg import IRG
from raykd.methods.kd import KD
from raykd.methods.ofd import OFD
from raykd.methods.pkt import PKT
from raykd.methods.reviewkd import ReviewKD
from raykd.methods.sakd import SAKD
from raykd.models import build
from raykd.training.learner import Learner
from tests.each import each
from tests.methods.sakd_cases import (
    BASES,
    PAPER,
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
    networks,
    of_rows,
    seen,
    state,
    total,
)
from tests.small import batch, pair, pair_for
from tests.tiers import slow_but

# All samples, or none.


FORCED = [
    *((("resnet8", "resnet14", 16), name) for name in PAPER),
    *((("resnet8", "resnet8x4", 16), name) for name in ("crd", "reviewkd", "combine", "kd")),
    (("mobilenet_v2_x0_5", "vgg8", 32), "at"),
    (("shufflenet_v1", "wrn_16_1", 32), "sp"),
    (("torchvision/mobilenet_v3_small", "torchvision/resnet18", 64), "vid"),
    (("torchvision/resnet18", "torchvision/resnet18", 32), "fitnet"),
]
QUICK_FORCED = [
    (("resnet8", "resnet8x4", 16), "combine"),
    (("mobilenet_v2_x0_5", "vgg8", 32), "at"),
]


@each(("names", "base"), slow_but(FORCED, QUICK_FORCED), ids=name_of)
def test_without_any_teaching_there_is_the_labels_loss_and_the_route_is_the_student(names, base):
    (student, teacher), side = networks(*names), names[2]
    method = SAKD(base=base_of(base), gamma=1.0)
    helpers = helpers_of(method, student, teacher, side)
    force(helpers, 0)
    learner, sample = Learner(student, method, helpers), batch(6, side)
    sample = replace(sample, pixels=sample.pixels.contiguous(memory_format=torch.channels_last))
    losses, logits = learner(sample, answer(method, teacher, sample), 1.0)
    assert torch.equal(losses.pop("label"), F.cross_entropy(logits, sample.targets))
    route = losses.pop("route")
    assert all(bool(loss == 0) for loss in losses.values())
    with torch.no_grad():
        alone = student.eval()(sample.pixels)
    assert torch.equal(route, F.cross_entropy(alone, sample.targets) + 3.0)  # half of 6 are missing


@each(("names", "base"), slow_but(FORCED, QUICK_FORCED), ids=name_of)
def test_with_teaching_everywhere_it_is_the_sum_of_base_and_kd(names, base):
    (student, teacher), side = networks(*names), names[2]
    method, always = (SAKD(base=base_of(base), gamma=1.0, mode=m) for m in ("adaptive", "always"))
    helpers = helpers_of(method, student, teacher, side)
    force(helpers, 1)
    of_base, sample = deepcopy(helpers["base"]), batch(6, side)
    sample = replace(sample, pixels=sample.pixels.contiguous(memory_format=torch.channels_last))
    theirs, mine = answer(method, teacher, sample), seen(method, student, sample)
    losses = dict(method.losses(mine, theirs, sample, helpers))
    assert torch.equal(losses.pop("route"), F.cross_entropy(theirs.logits, sample.targets))
    expected = dict(always.losses(mine, theirs, sample, nn.ModuleDict({"base": of_base})))
    assert losses.keys() == expected.keys()
    for spot, loss in expected.items():
        assert torch.equal(losses[spot], loss), spot


@each("name", slow_but(BASES, ["crd", "ofd"]))
def test_a_batch_may_be_one_sample(name):
    student, teacher = pair_for(base_of(name))
    for gate in (0, 1):
        method, sample = SAKD(base=base_of(name)), batch(1)
        learner = Learner(student, method, helpers_of(method, student, teacher)).train()
        force(learner.helpers, gate)
        losses, _ = learner(sample, answer(method, teacher, sample), 1.0)
        total(losses).backward()
        assert_trains(learner)


# Some of the samples.


def picked(outputs, rows):
    """The outputs of some rows, put together by hand."""
    return Outputs(
        outputs.logits[rows],
        {stage: value[rows] for stage, value in outputs.features.items()},
        outputs.embedding[rows] if "embedding" in vars(outputs) else None,
        vars(outputs).get("network"),
        looks={look: picked(other, rows) for look, other in outputs._looks.items()},
    )


def spots_of(method, mine, theirs):
    return list(method.spots(mine.features, theirs.features))


@each(
    ("name", "mode"),
    [
        *slow_but(
            ((name, "adaptive") for name in BASES), [(name, "adaptive") for name in ("at", "mlkd")]
        ),
        ("crd", "random"),
        ("irg", "reverse"),
    ],
)
def test_a_spot_s_loss_is_the_base_s_for_its_rows_times_their_share(name, mode):
    student, teacher = pair_for(base_of(name))
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


SEVERAL = ("at", "vid", "nst", "ofd", "combine", "irg", "reviewkd")  # bases of several spots


def patterns(count, size=8):
    """Samples at each spot: none; one everywhere; by turns none, some and one."""
    nobody = torch.zeros(size, count, dtype=torch.bool)
    one, turns = nobody.clone(), nobody.clone()
    one[5] = True
    turns[[2, 3, 5], 1::3] = True
    turns[5, 2::3] = True
    return {"nobody": nobody, "one": one, "turns": turns}


@each(
    ("name", "pattern"),
    slow_but(
        [
            *((name, pattern) for name in BASES for pattern in ("nobody", "one")),
            *((name, "turns") for name in (*SEVERAL, "crd")),
        ],
        [("at", "turns"), ("crd", "nobody"), ("crd", "one"), ("ofd", "one")],
    ),
)
def test_few_rows_or_none_at_a_spot_leave_losses_and_gradients_finite(name, pattern):
    student, teacher = pair_for(base_of(name))
    method = SAKD(base=base_of(name))
    helpers = helpers_of(method, student, teacher)
    wanted = patterns(decisions(helpers))[pattern]
    sample = chosen_as(method, helpers, batch(), wanted)
    before = state(helpers["base"])
    learner = Learner(student, method, helpers).train()
    losses, _ = learner(sample, answer(method, teacher, sample), 1.0)
    spots = method.spots(student.stages, teacher.stages)
    assert losses.keys() == {"label", "route", *spots}
    assert_finite(losses)
    total(losses).backward()
    assert_trains(learner)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert helpers["selection"].counts[:-1].sum(1).tolist() == wanted.sum(0).tolist()
    if pattern == "nobody":
        assert all(bool(losses[spot] == 0) for spot in spots)
        if method.base.joint or len(spots) == 2:
            assert_state(helpers["base"], before)


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


@each("base", [ReviewKD(), Combine(combine=(IRG(), CRD(**SMALL)))])
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


# What the others' rows must not touch.


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


@each("name", ["fitnet", "ft"])
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
        torch.testing.assert_close(helpers["base"].state_dict(), expected.state_dict())


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


def test_outputs_are_not_changed_in_place():
    for names, side in (
        (("resnet8", "resnet8x4"), 16),
        (("torchvision/mobilenet_v3_small", "torchvision/resnet18"), 64),
    ):
        student, teacher = networks(*names, side)
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
