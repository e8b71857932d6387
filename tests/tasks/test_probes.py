"""Probes: votes of neighbours by hand, and a linear probe against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from raykd.tasks import probes
from raykd.tasks.probes import Accuracy, knn_accuracy, linear_accuracy
from tests.each import each


def at(*degrees: float, length: float = 1.0) -> torch.Tensor:
    """Embeddings [n, 2] of a length at some angles."""
    angles = [math.radians(one) for one in degrees]
    return length * torch.tensor([[math.cos(one), math.sin(one)] for one in angles])


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training rows [1200, 64] and labels, test rows and labels of scikit-learn's digits."""
    flat, numbers = (torch.from_numpy(np.asarray(x)) for x in load_digits(return_X_y=True))
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    flat, numbers = flat[order].float(), numbers[order].long()
    return flat[:1200], numbers[:1200], flat[1200:], numbers[1200:]


def test_a_near_neighbour_outvotes_two_that_are_far():
    train, classes = at(0, 40, -40), labels(0, 1, 1)
    # exp(1 / 0.07) = 1.6e6 for class 0; 2 exp(cos 40 / 0.07) = 1.1e5 for class 1.
    assert knn_accuracy(train, classes, at(0), labels(0), 2, k=3).top1 == 100
    # At temperature 10 the votes are 1.105 and 2 * 1.080.
    assert knn_accuracy(train, classes, at(0), labels(0), 2, k=3, temperature=10).top1 == 0
    assert knn_accuracy(train, classes, at(0), labels(1), 2, k=3, temperature=10).top1 == 100


def test_votes_are_exponentials_of_cosines():
    """By hand: at 0 degrees with T = 0.5, class 0 at 60 degrees, class 1 at 80 and -80 degrees."""
    near, far = math.exp(math.cos(math.radians(60)) / 0.5), math.exp(0.17364817766693041 / 0.5)
    assert near < 2 * far, "the two that are far win together"
    train, classes = at(60, 80, -80), labels(0, 1, 1)
    assert knn_accuracy(train, classes, at(0), labels(1), 2, k=3, temperature=0.5).top1 == 100
    # At T = 0.3 one vote of 1 stands against two of exp((0.1736 - 0.5) / 0.3) = 0.337.
    assert knn_accuracy(train, classes, at(0), labels(0), 2, k=3, temperature=0.3).top1 == 100


def test_lengths_do_not_count():
    train, classes = torch.cat([at(10, length=0.01), at(30, length=100)]), labels(0, 1)
    assert knn_accuracy(train, classes, at(0, length=7), labels(0), 2, k=1).top1 == 100


def test_equal_cosines_go_to_the_earlier_row_and_equal_votes_to_the_lower_class():
    train, test = at(0, 0, 0, 90), at(0)
    assert knn_accuracy(train, labels(2, 1, 0, 3), test, labels(2), 4, k=1).top1 == 100
    assert knn_accuracy(train, labels(2, 1, 0, 3), test, labels(1), 4, k=2).top1 == 100
    assert knn_accuracy(train, labels(2, 1, 0, 3), test, labels(0), 4, k=3).top1 == 100


def test_a_class_without_a_vote_is_no_answer():
    train, classes = at(0, 10, 20), labels(4, 4, 5)
    few = knn_accuracy(train, classes, at(0, 0, 0), labels(4, 5, 0), 6, k=3)
    assert few == Accuracy(pytest.approx(100 / 3), pytest.approx(200 / 3))


def test_more_neighbours_than_rows_are_all_rows():
    train, classes = at(0, 50, 70), labels(0, 1, 1)
    every = knn_accuracy(train, classes, at(20, 65), labels(0, 1), 2, k=3)
    assert every == knn_accuracy(train, classes, at(20, 65), labels(0, 1), 2, k=1000)


def test_classes_may_be_missing_in_the_test_rows():
    train, classes = at(0, 90, 180), labels(0, 1, 2)
    assert knn_accuracy(train, classes, at(5, 85), labels(0, 1), 3, k=1).top1 == 100
    assert linear_accuracy(train, classes, at(5, 85), labels(0, 1), 3).top1 == 100


def test_blocks_change_nothing(monkeypatch):
    train, classes, test, theirs = digits()
    whole = knn_accuracy(train, classes, test, theirs, 10)
    monkeypatch.setattr(probes, "_TEST_ROWS", 100)
    monkeypatch.setattr(probes, "_TRAIN_ROWS", 17)
    assert knn_accuracy(train, classes, test, theirs, 10) == whole


def test_neighbours_are_those_of_a_whole_sort():
    """Against float64 and no blocks; digits have no equal cosines at the edge."""
    train, classes, test, theirs = digits()
    wide = [rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (train, test)]
    cosines, rows = (wide[1] @ wide[0].T).topk(20)
    votes = torch.zeros(len(test), 10, dtype=torch.float64)
    votes.scatter_add_(1, classes[rows], (cosines / 0.07).exp())
    right = (votes.argmax(1) == theirs).double().mean() * 100
    assert knn_accuracy(train, classes, test, theirs, 10).top1 == pytest.approx(float(right))


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [count, 16] around the centres of eight classes, which overlap, and their classes."""
    keys = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(8, (count,), generator=keys)
    scales = torch.logspace(-1, 1, 16)
    return (centres[classes] + 1.5 * torch.randn(count, 16, generator=keys)) * scales, classes


@each(("solver", "count"), [("lbfgs", 1200), ("sgd", 20_000)])
def test_a_linear_probe_has_the_accuracy_of_scikit_learn(solver, count):
    train, classes = blobs(count, 1)
    test, theirs = blobs(4000, 2)
    mean, deviation = train.mean(0), train.std(0)
    fit = LogisticRegression(max_iter=1000).fit((train - mean) / deviation, classes)
    score = 100 * fit.score((test - mean) / deviation, theirs)
    assert 60 < score < 95
    probe = linear_accuracy(train, classes, test, theirs, 8, solver=solver)
    assert abs(probe.top1 - score) < 1, (probe.top1, score)
    assert probe == linear_accuracy(train, classes, test, theirs, 8, solver=solver)


@pytest.mark.slow
def test_a_linear_probe_of_digits_has_the_accuracy_of_the_best_penalty():
    train, classes, test, theirs = digits()
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    rows, others = (train - mean) / deviation, (test - mean) / deviation
    fits = [LogisticRegression(C=c, max_iter=1000).fit(rows, classes) for c in (0.1, 1.0)]
    score = max(100 * fit.score(others, theirs) for fit in fits)
    assert abs(linear_accuracy(train, classes, test, theirs, 10).top1 - score) < 1


@pytest.mark.slow
def test_a_linear_probe_ignores_scale_and_shift():
    train, classes, test, theirs = digits()
    plain = linear_accuracy(train, classes, test, theirs, 10)
    moved = linear_accuracy(train * 512 + 64, classes, test * 512 + 64, theirs, 10)
    assert abs(moved.top1 - plain.top1) < 1, "rounding may choose another penalty"


def test_embeddings_that_do_not_fit_are_refused():
    train, classes = at(0, 90), labels(0, 1)
    for probe in (knn_accuracy, linear_accuracy):
        with pytest.raises(ValueError, match="test: expected rows of 2 numbers"):
            probe(train, classes, torch.zeros(1, 3), labels(0), 2)
        with pytest.raises(ValueError, match="train: expected labels of 1 classes"):
            probe(train, classes, at(0), labels(0), 1)
        with pytest.raises(ValueError, match="test: some embeddings are not finite"):
            probe(train, classes, at(math.nan), labels(0), 2)
