"""Distillation of several teachers' embeddings and maps: golden values, dropping, calibration."""

import weakref

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.panel_distillation import PanelDistillation, mixed_distance
from raykd.methods.presets import PRESETS
from raykd.models import measure
from tests import small
from tests.small import golden_embeddings

PLAIN = {"standardise": "none", "drop": 0.0}
SHAPES = Shapes(0, 6, {"stage1": (6, 5, 1)})
UNIC = [0.3971713338, 0.3243293825, 0.2831792897, 0.2550891061]


def tokens():
    """The formulas of the golden tokens, for four samples: [4, 6, 5]."""
    n, t, d = torch.meshgrid(*(torch.arange(s).double() for s in (4, 5, 6)), indexing="ij")
    student = torch.sin(0.3 * n + 0.5 * t + 0.9 * d + 0.1)
    return student.mT, torch.cos(0.2 * n + 0.7 * t + 0.4 * d + 0.3).mT


def outputs(embedding, places, stage="stage1"):
    return Outputs(embedding=embedding, features={f"{stage}.map": places[..., None]})


def pair():
    """Student and teacher."""
    (one, other), (mine, theirs) = golden_embeddings(), tokens()
    return outputs(one, mine), outputs(other, theirs)


def helpers_of(method, teachers):
    """Helpers with identities for projections."""
    panel = tuple([SHAPES] * teachers) if teachers > 1 else ()
    helpers = method.helpers(SHAPES, Shapes(0, 6, SHAPES.features, panel=panel)).double()
    with torch.no_grad():
        for own in helpers.values():
            own["embedding"].weight.copy_(torch.eye(6))
            own["map"].weight.copy_(torch.eye(6)[:, :, None, None])
    return helpers


def loss_of(method, student, *teachers, epoch=0):
    ids = torch.arange(len(student.embedding))
    batch = Batch(torch.zeros(len(ids), 3, 1, 1), ids, ids, view=0, epoch=epoch)
    several = len(teachers) > 1
    answer = teachers[0].replace(panel=teachers) if several else teachers[0]
    losses = method.losses(student, answer, batch, helpers_of(method, len(teachers)))
    assert losses.keys() == {"stage1", "embedding"}
    return sum(losses.values()).item()


def test_golden_values_of_unic():
    student, teacher = pair()
    loss = loss_of(PanelDistillation(**PLAIN), student, teacher)
    assert loss == pytest.approx(0.314942268, rel=1e-6)
    (one, other), (mine, theirs) = golden_embeddings(), tokens()
    each = mixed_distance(one[..., None], other[..., None], 0.5) + mixed_distance(mine, theirs, 0.5)
    assert (each / 2).tolist() == pytest.approx(UNIC, rel=1e-6)


def test_radio_s_spatial_loss_is_one_of_its_settings():
    method = PanelDistillation.read(PRESETS["am_radio"].method)
    ids = torch.arange(2)
    batch = Batch(torch.zeros(2, 3, 1, 1), ids, ids, view=0, epoch=0)
    mine, theirs = (
        outputs(embedding[:2], places[:2])
        for embedding, places in zip(golden_embeddings(), tokens(), strict=True)
    )
    losses = method.losses(mine, theirs, batch, helpers_of(method, 1))
    assert losses["stage1"].item() == pytest.approx(0.531940699 / 2, rel=1e-6)


def test_the_cosine_is_that_of_embeddings_as_they_are():
    student, teacher = pair()
    method = PanelDistillation(embedding_distance="cosine", drop=0.0)
    helpers = helpers_of(method, 1)
    assert "standard_embedding" not in helpers["0"]
    method.calibrate(helpers, [teacher])
    ids = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), ids, ids, view=0, epoch=0)
    losses = method.losses(student, teacher, batch, helpers)
    assert losses["embedding"].item() == pytest.approx(0.3170808717 / 2, rel=1e-6)


def test_a_ladder_adds_projections_of_every_stage():
    method = PanelDistillation(**PLAIN, projector="ladder")
    student, teacher = small.pair(teacher="resnet8x4")
    shown = small.batch()
    answer = student.outputs(shown.pixels, method.student_needs())
    target = teacher.outputs(shown.pixels, method.needs())
    helpers = method.helpers(*(measure(network, (16, 16)) for network in (student, teacher)))
    losses = method.losses(answer, target, shown, helpers)
    places, vectors = helpers["0"]["map"], helpers["0"]["embedding"]
    assert [rung[0].weight.shape[:2] for rung in places.rungs] == [(768, 16), (768, 32), (3072, 64)]
    mapped = vectors([answer.features[f"stage{k}"].mean((2, 3)) for k in (1, 2)]
                     + [answer.embedding])  # fmt: skip
    wanted = mixed_distance(mapped[..., None], target.embedding[..., None], 0.5).mean() / 2
    torch.testing.assert_close(losses["embedding"], wanted)
    sum(losses.values()).backward()
    assert all(rung[0].weight.grad.any() for rung in (*places.rungs, *vectors.rungs))


@pytest.mark.slow
def test_dropping_none_is_the_mean_and_dropping_all_the_maximum():
    student, near = pair()
    far = outputs(-near.embedding, -near.map[..., 0])
    means = [loss_of(PanelDistillation(**PLAIN), student, one) for one in (near, far)]
    mean = loss_of(PanelDistillation(**PLAIN), student, near, far)
    assert mean == pytest.approx(sum(means) / 2, rel=1e-9)
    most = loss_of(PanelDistillation(standardise="none", drop=1.0), student, near, far)
    each = [
        mixed_distance(student.embedding[..., None], one.embedding[..., None], 0.5)
        + mixed_distance(student.map[..., 0], one.map[..., 0], 0.5)
        for one in (near, far)
    ]
    assert most == pytest.approx(torch.maximum(*each).mean().item() / 2, rel=1e-9)


def test_shares_weigh_teachers_and_one_without_a_share_changes_nothing():
    student, near = pair()
    far = outputs(-near.embedding, -near.map[..., 0])
    apart = [loss_of(PanelDistillation(**PLAIN), student, one) for one in (near, far)]
    weighed = PanelDistillation(**PLAIN, shares=(0.1, 0.3))
    assert loss_of(weighed, student, near, far) == pytest.approx(
        (apart[0] + 3 * apart[1]) / 4, rel=1e-9
    )
    for drop in (0.0, 0.5, 1.0):
        fields = {"standardise": "none", "drop": drop}
        alone = loss_of(PanelDistillation(**fields), student, near, near)
        method = PanelDistillation(**fields, shares=(2.0, 2.0, 0.0))
        assert loss_of(method, student, near, near, far) == pytest.approx(alone, rel=1e-12)
    with pytest.raises(ValueError, match="all are 0"):
        PanelDistillation(shares=(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"as many as there are teachers, 2, got 3"):
        helpers_of(method, 2)


@pytest.mark.slow
def test_a_share_of_teachers_is_dropped_by_key():
    method = PanelDistillation(drop=0.5)
    distances = torch.stack([torch.full((4000,), 2.0), torch.ones(4000), torch.ones(4000)])
    ids = torch.arange(4000)
    batch = Batch(torch.zeros(1), ids, ids, view=0, epoch=3)
    kept = method.kept(distances, batch)
    assert bool((kept[0] == 1).all())
    assert kept[1:].mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert not torch.equal(kept[1], kept[2])
    rows = torch.tensor([7, 3, 999])
    assert torch.equal(method.kept(distances[:, rows], batch.rows(rows)), kept[:, rows])


@pytest.mark.slow
def test_each_teacher_is_standardised_by_its_own_outputs():
    method = PanelDistillation()
    _, teacher = pair()
    other = outputs(100 * teacher.embedding + 5, 100 * teacher.map[..., 0] - 3)
    helpers = helpers_of(method, 2)
    assert method.needs_calibration(helpers)
    method.calibrate(helpers, [teacher.replace(panel=(teacher, other))])
    assert not method.needs_calibration(helpers)
    for kind, values in (("embedding", "embedding"), ("map", "map")):
        one, two = (
            own[f"standard_{kind}"](getattr(answer, values).flatten(2) if kind == "map"
                                    else answer.embedding[..., None])
            for own, answer in zip(helpers.values(), (teacher, other), strict=True)
        )  # fmt: skip
        torch.testing.assert_close(one, two)


def test_calibration_keeps_no_maps_of_the_batches_that_it_has_seen():
    _, teacher = pair()
    seen: list[weakref.ref[torch.Tensor]] = []

    def answers():
        for _ in range(5):
            places = teacher.map[..., 0] * 2
            seen.append(weakref.ref(places))
            one = outputs(teacher.embedding, places)
            yield one.replace(panel=(one, one))
            del places, one
            assert sum(ref() is not None for ref in seen) <= 1

    for distance in ("mixed", "angle"):
        method = PanelDistillation(embedding_distance=distance)
        helpers = helpers_of(method, 2)
        method.calibrate(helpers, answers())
        assert not method.needs_calibration(helpers)


@pytest.mark.slow
def test_c_radio_s_losses_are_its_settings():
    method = PanelDistillation(
        embedding_distance="angle", map_distance="mse", standardise="phi_s", drop=0.0
    )
    student, teacher = pair()
    helpers = helpers_of(method, 1)
    assert method.needs_calibration(helpers)
    method.calibrate(helpers, [teacher])
    ids = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), ids, ids, view=0, epoch=0)
    losses = method.losses(student, teacher, batch, helpers)
    assert losses["embedding"].item() == pytest.approx(5.914650467 / 2, rel=1e-6)
    target = helpers["0"]["standard_map"](teacher.map.flatten(2))
    expected = (student.map.flatten(2) - target).square().mean().item()
    assert losses["stage1"].item() == pytest.approx(expected / 2, rel=1e-9)
