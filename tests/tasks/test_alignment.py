"""Alignment of wide embeddings by their rows: the numbers of the direct formula, in less memory."""

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.tasks import Features
from raykd.tasks.alignment import by_rows, cka
from raykd.tasks.base import Embedded
from tests.each import each


def direct(x, y):
    """The formula as it is written."""
    x, y = (value.double() - value.double().mean(0) for value in (x, y))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def rows(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(count, width, generator=generator)


@each(
    "count, widths",
    [(40, (300, 200)), (300, (40, 60)), (2500, (8, 5)), (1024, (30, 30)), (2, (9, 9))],
)
def test_the_rows_give_what_the_features_give(count, widths):
    x, y = (rows(count, width, seed) for seed, width in enumerate(widths))
    y = y + x[:, : y.shape[1]].mean(1, keepdim=True)
    assert cka(x, y) == pytest.approx(direct(x, y), rel=1e-10)


def test_equal_embeddings_are_aligned_and_constant_ones_are_not():
    x = rows(20, 50)
    assert cka(x, 2 * x + 1) == pytest.approx(1, rel=1e-12)
    assert cka(x, torch.ones(20, 4)) == 0


@each(
    "count, widths, few",
    [(1000, (6400, 6400), True), (9601, (6400, 6400), False), (100, (2048, 2048), False)],
)
def test_few_rows_of_wide_embeddings_are_kept(count, widths, few):
    assert by_rows(count, *widths) == few


@each("count", [24, 3600])  # by rows, and by sums
def test_a_task_measures_the_same_over_batches_either_way(count):
    task, method = Features().over(count), FeatureDistillation()
    helpers = torch.nn.ModuleDict({"projection": torch.nn.Identity()})
    x, y = (rows(24, 2400, seed) for seed in (0, 1))
    sums, parts = None, []
    for part in torch.arange(24).split(10):
        student, teacher = Outputs(embedding=x[part]), Outputs(embedding=y[part])
        batch = Batch(torch.zeros(len(part), 3, 1, 1), part, part, view=0, epoch=0)
        more = task.batch_sums(method, student, teacher, batch, helpers)
        sums = more if sums is None else sums + more
        if task.collects_from(student, teacher):
            parts.append(part)
    assert sums is not None
    metrics = task.metrics(sums, taught=True)
    if count == 24:
        assert len(sums) == 5 and torch.equal(torch.cat(parts), torch.arange(24))
        metrics |= task.collected(Embedded(student=x, answer=x, teacher=y))
    assert not parts or count == 24
    assert metrics["cka"] == pytest.approx(100 * direct(x, y), rel=1e-9)
    assert metrics.keys() == {"cka", "test_loss"}
