"""Mimic learning: squared differences of logits and of embeddings."""

import pytest
import torch

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.mimic import MimicEmbedding, MimicLogits
from tests.small import golden_embeddings, golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
MINE, THEIRS = golden_embeddings()


def losses_of(method, student, teacher, helpers=None, epoch=0):
    sample = Batch(torch.empty(0), TARGETS, torch.arange(4), view=0, epoch=epoch)
    return method.losses(student, teacher, sample, helpers or method.helpers(shapes(6), shapes(6)))


def shapes(width):
    return Shapes(10, width, {})


def test_the_logits_loss_is_a_mean_over_samples_and_classes():
    losses = losses_of(MimicLogits(weight=0.3), Outputs(STUDENT), Outputs(TEACHER))
    mine, theirs = STUDENT.flatten().tolist(), TEACHER.flatten().tolist()
    total = sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
    assert list(losses) == ["logits"]
    assert losses["logits"].item() == pytest.approx(0.3 * total / 40, rel=1e-12)


def test_the_embedding_loss_is_a_sum_over_the_width_and_a_mean_over_samples():
    mine, theirs = Outputs(STUDENT, embedding=MINE), Outputs(TEACHER, embedding=THEIRS)
    losses = losses_of(MimicEmbedding(weight=2.0), mine, theirs)
    total = sum(
        (a - b) ** 2
        for a, b in zip(MINE.flatten().tolist(), THEIRS.flatten().tolist(), strict=True)
    )
    assert list(losses) == ["embedding"]
    assert losses["embedding"].item() == pytest.approx(2 * total / 4, rel=1e-12)


@pytest.mark.slow
def test_a_linear_map_stands_between_embeddings_of_different_widths_only():
    method = MimicEmbedding()
    assert not method.helpers(shapes(6), shapes(6))
    helpers = method.helpers(shapes(4), shapes(6)).double()
    layer = helpers["projection"]
    assert layer.weight.shape == (6, 4)
    mine, theirs = Outputs(STUDENT, embedding=MINE[:, :4]), Outputs(TEACHER, embedding=THEIRS)
    loss = losses_of(method, mine, theirs, helpers)["embedding"]
    mapped = MINE[:, :4] @ layer.weight.T + layer.bias
    torch.testing.assert_close(loss, ((mapped - THEIRS) ** 2).sum() / 4)
    loss.backward()
    assert layer.weight.grad.any() and layer.bias.grad.any()


@pytest.mark.slow
def test_the_weights_may_change_with_the_epoch():
    weight = ((0, 1.0), (3, 0.5))
    for method in (MimicLogits(weight=weight), MimicEmbedding(weight=weight)):
        mine, theirs = Outputs(STUDENT, embedding=MINE), Outputs(TEACHER, embedding=THEIRS)
        (early,) = losses_of(method, mine, theirs).values()
        (late,) = losses_of(method, mine, theirs, epoch=3).values()
        assert late.item() == pytest.approx(early.item() / 2)


@pytest.mark.slow
def test_plain_distillation_at_a_high_temperature_regresses_centred_logits():
    from raykd.methods.base import soft_cross_entropy

    mine, theirs = (z - z.mean(1, keepdim=True) for z in (STUDENT, TEACHER))
    losses = losses_of(MimicLogits(weight=0.5), Outputs(mine), Outputs(theirs))
    distilled = soft_cross_entropy(STUDENT, TEACHER, 1e4)
    assert distilled.item() == pytest.approx(losses["logits"].item(), rel=1e-3)  # off by 1 / T
