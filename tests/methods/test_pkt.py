"""Probabilistic transfer: the golden value and the formula pair by pair."""

import math

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.pkt import PKT, neighbours, transfer
from tests.small import golden_embeddings

STUDENT, TEACHER = golden_embeddings()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)


def loss_of(method, student=STUDENT, teacher=TEACHER):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=0)
    mine, theirs = Outputs(LOGITS, embedding=student), Outputs(LOGITS, embedding=teacher)
    losses = method.losses(mine, theirs, sample, method.helpers(None, None))
    assert list(losses) == ["embedding"]
    return losses["embedding"]


def test_the_loss_has_its_golden_value():
    assert transfer(STUDENT, TEACHER).item() == pytest.approx(0.0007489186619, rel=1e-9)
    assert loss_of(PKT()).item() == pytest.approx(30_000 * 0.0007489186619, rel=1e-9)


def test_the_loss_is_the_formula_pair_by_pair():
    def probabilities(rows):
        lengths = [math.hypot(*row) + 1e-7 for row in rows]
        inner = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
        similar = [
            [(value / (lengths[i] * lengths[j]) + 1) / 2 for j, value in enumerate(row)]
            for i, row in enumerate(inner)
        ]
        return [[value / sum(row) for value in row] for row in similar]

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    p, q = probabilities(teacher.tolist()), probabilities(student.tolist())
    total = sum(
        a * math.log((a + 1e-7) / (b + 1e-7))
        for mine, theirs in zip(q, p, strict=True)
        for a, b in zip(theirs, mine, strict=True)
    )
    loss = loss_of(PKT(weight=2.0), student, teacher)
    assert loss.item() == pytest.approx(2 * total / 25, rel=1e-11)


@pytest.mark.slow
def test_one_sample_alone_has_exactly_no_loss():
    student = STUDENT[:1].clone().requires_grad_()
    loss = loss_of(PKT(), student, TEACHER[:1])
    loss.backward()
    assert loss == 0
    assert student.grad.abs().max() < 1e-6


@pytest.mark.slow
def test_every_row_is_a_distribution_and_length_does_not_matter():
    scale = torch.tensor([[0.5], [2.0], [10.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(neighbours(STUDENT).sum(1), torch.ones(4).double())
    # The 1e-7 beside lengths from 0.5 on.
    torch.testing.assert_close(neighbours(scale * STUDENT), neighbours(STUDENT), rtol=1e-6, atol=0)
