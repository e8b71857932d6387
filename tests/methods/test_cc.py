"""Correlation congruence: the golden values of both forms, and their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.cc import CC, gaussian_kernel, neighbour_product
from tests.small import golden_embeddings

STUDENT, TEACHER = golden_embeddings()
LOGITS = torch.zeros(4, 10, dtype=torch.float64)
GAUSSIAN = CC(form="gaussian")


def loss_of(method, student=STUDENT, teacher=TEACHER, helpers=None):
    targets = torch.zeros(len(student), dtype=torch.int64)
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=0)
    mine, theirs = Outputs(LOGITS, embedding=student), Outputs(LOGITS, embedding=teacher)
    losses = method.losses(mine, theirs, sample, helpers or helpers_of(method))
    assert list(losses) == ["embedding"]
    return losses["embedding"]


def helpers_of(method, width=6, width_teacher=6):
    torch.manual_seed(0)
    return method.helpers(Shapes(10, width, {}), Shapes(10, width_teacher, {})).double()


def test_both_forms_have_their_golden_values():
    assert neighbour_product(STUDENT, TEACHER).item() == pytest.approx(1.746791766, rel=1e-9)
    loss = loss_of(CC(form="gaussian", weight=1.0))
    assert loss.item() == pytest.approx(0.007712229541, rel=1e-9)


def test_the_product_form_is_its_formula_through_two_trained_maps():
    method = CC(width=8)
    helpers = helpers_of(method)
    maps = [
        [(helpers[who].weight @ row + helpers[who].bias).tolist() for row in rows]
        for who, rows in (("student", STUDENT), ("teacher", TEACHER))
    ]
    delta = [[abs(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(*maps, strict=True)]
    total = sum(delta[n][d] * delta[n + 1][d] for n in range(3) for d in range(8))
    loss = loss_of(method, helpers=helpers)
    assert loss.item() == pytest.approx(0.02 * total / 3, rel=1e-12)
    loss.backward()
    assert all(parameter.grad.any() for parameter in helpers.parameters())


def test_the_gaussian_form_is_its_formula_pair_by_pair():
    def kernel(rows, gamma, order):
        unit = [[x / math.hypot(*row) for x in row] for row in rows]
        inner = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in unit] for x in unit]
        series = range(order + 1)
        return [
            math.exp(-2 * gamma) * sum((2 * gamma) ** p / math.factorial(p) * v**p for p in series)
            for row in inner
            for v in row
        ]

    method = CC(form="gaussian", gamma=0.7, order=3, weight=2.0)
    pairs = zip(kernel(STUDENT.tolist(), 0.7, 3), kernel(TEACHER.tolist(), 0.7, 3), strict=True)
    total = sum((a - b) ** 2 for a, b in pairs)
    assert loss_of(method).item() == pytest.approx(2 * total / 16, rel=1e-12)


@pytest.mark.slow
def test_the_series_tends_to_the_gaussian_of_the_distance():
    unit = F.normalize(STUDENT, dim=1)
    squared = ((unit[None] - unit[:, None]) ** 2).sum(2)
    torch.testing.assert_close(gaussian_kernel(STUDENT, 0.4, 20), (-0.4 * squared).exp())


@pytest.mark.slow
def test_every_form_has_its_source_s_weight_unless_one_is_given():
    for form, weight in (("product", 0.02), ("gaussian", 100.0)):
        helpers = helpers_of(CC(form=form))
        unweighted = loss_of(CC(form=form, weight=1.0), helpers=helpers)
        torch.testing.assert_close(loss_of(CC(form=form), helpers=helpers), weight * unweighted)


@pytest.mark.slow
def test_one_sample_alone_has_no_loss_and_no_gradient():
    for method in (CC(), GAUSSIAN):
        student = STUDENT[:1].clone().requires_grad_()
        loss = loss_of(method, student, TEACHER[:1])
        loss.backward()
        assert loss.abs() < 1e-15
        assert student.grad.abs().max() < 1e-12


@pytest.mark.slow
def test_the_order_of_the_batch_matters_to_the_product_form_alone():
    order = torch.tensor([2, 0, 3, 1])
    mine, theirs = STUDENT[order], TEACHER[order]
    torch.testing.assert_close(loss_of(GAUSSIAN, mine, theirs), loss_of(GAUSSIAN))
    product = neighbour_product(mine, theirs).item()
    assert product != pytest.approx(neighbour_product(STUDENT, TEACHER).item(), rel=1e-2)


@pytest.mark.slow
def test_embeddings_of_different_widths_meet_in_both_forms():
    assert bool(loss_of(GAUSSIAN, STUDENT[:, :3]).isfinite())
    loss = loss_of(CC(), STUDENT[:, :3], helpers=helpers_of(CC(), 3, 6))
    assert bool(loss.isfinite())
    assert not GAUSSIAN.helpers(Shapes(10, 3, {}), Shapes(10, 6, {}))
