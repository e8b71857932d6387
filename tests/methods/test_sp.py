"""Similarity preserving: golden value, the naive formula, and what it cannot see."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.sp import SP, similarity_loss
from tests.small import batch, golden_embeddings, golden_maps

MAPS = golden_maps()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)


def test_the_loss_has_its_golden_value():
    loss = similarity_loss(MAPS["fs"], MAPS["ft"])
    assert loss.item() == pytest.approx(0.003382643604, rel=1e-6)


def test_the_loss_is_the_formula_pair_by_pair():
    def rows(maps):
        products = torch.stack([torch.stack([(a * b).sum() for b in maps]) for a in maps])
        return products / products.square().sum(1, keepdim=True).sqrt()

    expected = (rows(MAPS["a8"]) - rows(MAPS["ft"])).square().sum() / 16
    torch.testing.assert_close(similarity_loss(MAPS["a8"], MAPS["ft"]), expected)


@pytest.mark.slow
def test_one_sample_has_no_loss():
    assert similarity_loss(MAPS["fs"][:1], MAPS["ft"][:1]) == 0


@pytest.mark.slow
def test_a_network_of_another_scale_and_orthogonal_coordinates_has_no_loss():
    rotation, _ = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))
    other = 5 * MAPS["fs"].flatten(1) @ rotation
    assert similarity_loss(MAPS["fs"], other) < 1e-25


@pytest.mark.slow
def test_the_last_stages_are_compared_whatever_their_number():
    student = Outputs(LOGITS, {"stem": MAPS["a8"], "stage1": MAPS["a8"], "stage2": MAPS["fs"]})
    teacher = Outputs(LOGITS, {"stem": MAPS["ft8"], "stage1": MAPS["ft"]})
    losses = SP(weight=2.0).losses(student, teacher, batch(4), SP().helpers(*[shapes()] * 2))
    assert losses.keys() == {"stage2"}
    assert losses["stage2"].item() == pytest.approx(2 * 0.003382643604, rel=1e-6)


@pytest.mark.slow
def test_embeddings_are_read_alone_where_they_are_asked_for():
    method = SP(on="embedding", weight=2.0)
    assert method.needs() == Signal.EMBEDDING
    mine, theirs = golden_embeddings()
    helpers = method.helpers(Shapes(10, 6, {}), Shapes(10, 6, {}))
    losses = method.losses(
        Outputs(LOGITS, embedding=mine), Outputs(LOGITS, embedding=theirs), batch(4), helpers
    )
    torch.testing.assert_close(dict(losses), {"embedding": 2 * similarity_loss(mine, theirs)})


def test_a_network_without_stages_is_refused():
    with pytest.raises(ConfigError, match="has no stages"):
        SP().helpers(shapes(), Shapes(10, 6, {}))


def shapes():
    return Shapes(10, 6, {"stem": (3, 4, 4)})
