"""Multi-level distillation: golden values, levels, masks and views."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.base import standardise
from raykd.methods.mlkd import MLKD, batch_gram, class_gram
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
TEMPERATURES = (4.0, 2.0, 3.0, 5.0, 6.0)


def drawn(rows=5, classes=6):
    """Weak and strong logits of both networks, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, rows, classes, generator=generator, dtype=torch.float64)
    return (*logits, torch.randint(0, classes, (rows,), generator=generator))


def loss_of(method, student, teacher, strong=None, strong_teacher=None, labels=None, epoch=0):
    """The loss; without strong logits the strong look is not there."""
    labels = torch.zeros(len(student), dtype=torch.int64) if labels is None else labels
    rows, looks = torch.arange(len(student)), {}
    mine, theirs = Outputs(student), Outputs(teacher)
    if strong is not None:
        looks = {"strong": Batch(torch.empty(0), labels, rows, 0, epoch)}
        mine = mine.with_looks({"strong": Outputs(strong)})
        theirs = theirs.with_looks({"strong": Outputs(strong_teacher)})
    sample = Batch(torch.empty(0), labels, rows, 0, epoch, looks)
    losses = method.losses(mine, theirs, sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def divergences(student, teacher, temperature):
    """T**2 KL of each sample."""
    each = []
    for mine, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs, temperature), softmax(mine, temperature)
        total = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        each.append(temperature**2 * total)
    return each


def gram_rows(p, q):
    """The squared difference of each row of two Gram matrices, of lists of vectors."""
    return [
        sum((dot(p[i], p[j]) - dot(q[i], q[j])) ** 2 for j in range(len(p))) for i in range(len(p))
    ]


def weak(student, teacher, temperatures, *, released=False):
    """The weak view's levels with weight 1, from nested lists."""
    student, teacher = student.tolist(), teacher.tolist()
    rows, classes = len(student), len(student[0])
    certain = [softmax(row, 1.0) for row in teacher]
    confidence = [max(row) for row in certain]
    by_class = [sum(row[c] for row in certain) for c in range(classes)]
    keep = [float(v <= statistics.median(confidence)) for v in confidence]
    keep_class = [float(v <= statistics.median(by_class)) for v in by_class]
    if released:
        keep = [sum(keep) / rows] * rows
        keep_class = [sum(keep_class) / classes] * classes
    total = 0.0
    for temperature in temperatures:
        p = [softmax(row, temperature) for row in teacher]
        q = [softmax(row, temperature) for row in student]
        columns = [[list(c) for c in zip(*m, strict=True)] for m in (p, q)]
        total += dot(divergences(student, teacher, temperature), keep) / rows
        total += dot(gram_rows(*columns), keep_class) / classes
        total += dot(gram_rows(p, q), keep) / rows
    return total


def test_the_gram_losses_have_their_golden_values():
    mine, theirs = F.softmax(STUDENT / 4, dim=1), F.softmax(TEACHER / 4, dim=1)
    assert class_gram(mine, theirs).sum().item() / 10 == pytest.approx(0.009413539222, rel=1e-9)
    assert batch_gram(mine, theirs).sum().item() / 4 == pytest.approx(0.0007883441814, rel=1e-9)


@each("rows", [4, 5])
@each("released", [False, True])
def test_the_weak_view_is_the_formula_row_by_row(rows, released):
    student, teacher, _, _, _ = drawn(rows)
    method = MLKD(strong_view=False, as_released=released, weight=0.7)
    expected = 0.7 * weak(student, teacher, TEMPERATURES, released=released)
    assert loss_of(method, student, teacher).item() == pytest.approx(expected, rel=1e-11)


@each("released", [False, True])
def test_the_strong_view_adds_its_instances_and_its_labels(released):
    student, teacher, strong, strong_teacher, labels = drawn()
    method = MLKD(as_released=released)
    whole = loss_of(method, student, teacher, strong, strong_teacher, labels)
    expected = 0.9 * weak(student, teacher, TEMPERATURES, released=released)
    for temperature in TEMPERATURES:
        reused = released and temperature in (2.0, 6.0)
        views = (student, teacher) if reused else (strong, strong_teacher)
        each = divergences(*(view.tolist() for view in views), temperature)
        expected += 0.9 * sum(each) / len(each)
    p = [softmax(row, 1.0)[y] for row, y in zip(strong.tolist(), labels.tolist(), strict=True)]
    expected -= 0.1 * sum(math.log(value) for value in p) / len(p)
    assert whole.item() == pytest.approx(expected, rel=1e-11)


def test_only_samples_and_classes_up_to_the_median_of_confidence_count():
    student, teacher, _, _, _ = drawn(4)
    teacher[2] = torch.tensor([30.0, 0, 0, 0, 0, 0])  # by far the surest
    teacher[3] = torch.tensor([0.0, 20, 0, 0, 0, 0])
    student.requires_grad_()
    method = MLKD(strong_view=False, temperatures=(1.0,))
    (gradient,) = torch.autograd.grad(loss_of(method, student, teacher), student)
    # Rows 2 and 3 count in no divergence: only the others' Gram rows look at them.
    alone = weak(student.detach(), teacher, (1.0,))
    assert loss_of(method, student, teacher).item() == pytest.approx(0.9 * alone, rel=1e-11)
    sure = loss_of(method, student, teacher.where(torch.arange(4)[:, None] != 2, teacher + 100))
    assert sure.item() == pytest.approx(0.9 * alone, rel=1e-11)  # a shift changes no probability
    assert gradient[2:].abs().max() < gradient[:2].abs().max()


def test_equally_sure_predictions_all_count():
    teacher = torch.zeros(6, 6, dtype=torch.float64)
    student = drawn(6)[0]
    method = MLKD(strong_view=False, temperatures=(2.0,), weight=1.0)
    p, q = F.softmax(teacher / 2, 1), F.softmax(student / 2, 1)
    full = 4 * (p * (p / q).log()).sum() / 6
    full = full + (class_gram(q, p).sum() + batch_gram(q, p).sum()) / 6
    torch.testing.assert_close(loss_of(method, student, teacher), full)
    released = method.model_copy(update={"as_released": True})
    torch.testing.assert_close(loss_of(released, student, teacher), full)


def test_the_masks_as_released_scale_the_loss_by_their_mean():
    student, teacher, _, _, _ = drawn(4)
    method = MLKD(strong_view=False, as_released=True, temperatures=(3.0,), weight=1.0)
    p, q = F.softmax(teacher / 3, 1), F.softmax(student / 3, 1)
    full = 9 * (p * (p / q).log()).sum() / 4
    full = full + class_gram(q, p).sum() / 6 + batch_gram(q, p).sum() / 4
    torch.testing.assert_close(loss_of(method, student, teacher), full / 2)


def test_standardised_instances_do_not_show_the_scale():
    student, teacher, strong, strong_teacher, labels = drawn()
    method = MLKD(standardise=True, temperatures=(2.0,), strong_label_weight=0.0)
    with_strong = loss_of(method, student, teacher, strong, strong_teacher, labels)
    without = MLKD(standardise=True, temperatures=(2.0,), strong_view=False)
    added = (with_strong - loss_of(without, student, teacher)).item()
    mine, theirs = (standardise(logits).tolist() for logits in (strong, strong_teacher))
    expected = 0.9 * sum(divergences(mine, theirs, 2.0)) / len(mine)
    assert added == pytest.approx(expected, rel=1e-11)


def test_the_strong_view_s_labels_read_its_raw_logits_and_its_own_targets():
    student, teacher, strong, strong_teacher, labels = drawn()
    mixed = 0.5 * F.one_hot(labels, 6) + 0.5 * F.one_hot(labels.roll(1), 6)
    rows = torch.arange(len(labels))
    look = Batch(torch.empty(0), labels, rows, 0, 0)  # a strong view is never mixed
    sample = Batch(torch.empty(0), mixed.double(), rows, 0, 0, {"strong": look})
    mine = Outputs(student).with_looks({"strong": Outputs(strong)})
    theirs = Outputs(teacher).with_looks({"strong": Outputs(strong_teacher)})
    losses = [
        MLKD(standardise=True, strong_label_weight=w).losses(mine, theirs, sample, None)["logits"]
        for w in (1.0, 0.0)
    ]
    torch.testing.assert_close(losses[0] - losses[1], F.cross_entropy(strong, labels))


def test_both_networks_are_asked_for_the_strong_view_only_where_it_is_used():
    assert MLKD().looks().student == MLKD().looks().teacher == ("given", "strong")
    assert MLKD(strong_view=False).looks().student == ("given",)
    assert MLKD(strong_view=False).looks().teacher == ("given",)
