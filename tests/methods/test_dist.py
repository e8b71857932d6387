"""DIST: golden values, the formula, and what a correlation does not see."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.dist import DIST, correlation
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()


def loss_of(method, student=STUDENT, teacher=TEACHER):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=0)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def drawn(rows=6, classes=5):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


@each(("temperature", "expected"), [(1.0, 2.218935823), (4.0, 34.46934834)])
def test_the_loss_has_its_golden_value(temperature, expected):
    loss = loss_of(DIST(temperature=temperature, weight=1.0))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert loss_of(DIST(temperature=temperature)).item() == pytest.approx(2 * expected, rel=1e-9)


def test_the_loss_is_the_formula_pair_by_pair():
    def pearson(a, b):
        a, b = ([x - sum(v) / len(v) for x in v] for v in (a, b))
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)

    student, teacher = drawn()
    p, q = (F.softmax(logits / 2.5, dim=1) for logits in (student, teacher))
    inter = 1 - sum(map(pearson, p.tolist(), q.tolist())) / 6
    intra = 1 - sum(map(pearson, p.T.tolist(), q.T.tolist())) / 5
    loss = loss_of(DIST(temperature=2.5, beta=0.3, gamma=0.7, weight=1.5), student, teacher)
    assert loss.item() == pytest.approx(1.5 * 2.5**2 * (0.3 * inter + 0.7 * intra), rel=1e-12)


@pytest.mark.slow
def test_one_sample_alone_has_no_correlation_within_a_class():
    both, between = DIST(weight=1.0), DIST(weight=1.0, gamma=0.0)
    loss = loss_of(both, STUDENT[:1], TEACHER[:1]) - loss_of(between, STUDENT[:1], TEACHER[:1])
    assert loss.item() == pytest.approx(16.0, rel=1e-12)  # intra is 1, times T**2


@pytest.mark.slow
def test_a_constant_row_correlates_with_nothing_and_gives_no_nan():
    rows, other = torch.ones(2, 5, requires_grad=True), torch.randn(2, 5)
    result = correlation(rows, other)
    assert torch.equal(result, torch.zeros(2))
    (gradient,) = torch.autograd.grad(result.sum(), rows)
    assert bool(gradient.isfinite().all())
    student = torch.zeros(4, 10, requires_grad=True)
    loss = loss_of(DIST(), student, TEACHER.float())
    assert loss.item() == pytest.approx(2 * 16 * 2)  # both parts are 1
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(gradient.isfinite().all())


@pytest.mark.slow
def test_rows_on_a_common_line_correlate_fully():
    teacher = drawn()[0]
    torch.testing.assert_close(  # the 1e-8 beside norms of about 10
        correlation(0.3 * teacher - 2, teacher), torch.ones(6).double(), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        correlation(-teacher, teacher), -torch.ones(6).double(), rtol=0, atol=1e-8
    )
