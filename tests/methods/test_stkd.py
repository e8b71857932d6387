"""Similarity transfer: golden values, and the laws that its reconstruction must keep."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.base import soft_cross_entropy
from raykd.methods.stkd import STKD, mixed_output
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
PARTNERS = torch.tensor([1, 2, 3, 0])
WEIGHTS = torch.tensor([0.3, 0.9, 0.5, 0.0], dtype=torch.float64)
SHARE = torch.full((4,), 0.3, dtype=torch.float64)


def mixed_labels(weights, partners=PARTNERS, labels=TARGETS):
    """w e_own + (1 - w) e_partner."""
    own, other = F.one_hot(labels, 10), F.one_hot(labels[partners], 10)
    return weights[:, None] * own + (1 - weights[:, None]) * other


def loss_of(
    method, student=STUDENT, mixed=TEACHER, clean=TEACHER, *,
    partners=PARTNERS, weights=WEIGHTS, clean_student=STUDENT, labels=TARGETS, partner=None,
):  # fmt: skip
    """The loss; the teacher says `mixed` of the mixed samples and `clean` of those they are of."""
    rows, partner = torch.arange(len(student)), clean[partners] if partner is None else partner
    looks = {"clean": Batch(torch.empty(0), labels, rows, 0, 0)}
    targets = mixed_labels(weights, partners, labels)
    sample = Batch(torch.empty(0), targets, rows, 0, 0, looks, weights)
    mine = Outputs(student).with_looks({"clean": Outputs(clean_student)})
    theirs = Outputs(mixed).with_looks({"clean": Outputs(clean), "partner": Outputs(partner)})
    losses = method.losses(mine, theirs, sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


INPUT, OUTPUT = STKD(weight=1.0), STKD(weight=1.0, teacher="mixed_output")


def test_mixed_outputs_have_their_golden_value():
    loss = loss_of(OUTPUT, weights=SHARE)
    assert loss.item() == pytest.approx(4.930512338, rel=1e-9)


def test_the_mixed_labels_cross_entropy_has_its_golden_value():
    loss = F.cross_entropy(STUDENT, mixed_labels(SHARE))
    assert loss.item() == pytest.approx(4.349045571, rel=1e-9)


@pytest.mark.slow
def test_the_mixed_labels_cross_entropy_is_that_of_both_labels():
    each = F.cross_entropy(STUDENT, TARGETS, reduction="none")
    partner = F.cross_entropy(STUDENT, TARGETS[PARTNERS], reduction="none")
    expected = (WEIGHTS * each + (1 - WEIGHTS) * partner).mean()
    torch.testing.assert_close(F.cross_entropy(STUDENT, mixed_labels(WEIGHTS)), expected)


@pytest.mark.slow
def test_mixed_input_is_plain_distillation_on_the_mixed_samples():
    method = STKD(weight=0.7, temperature=2.5)
    expected = 0.7 * soft_cross_entropy(STUDENT, TEACHER, 2.5)
    torch.testing.assert_close(loss_of(method), expected, rtol=1e-12, atol=0)


def test_mixed_output_is_the_formula_sample_by_sample():
    student, clean, weights, total = STUDENT.tolist(), TEACHER.tolist(), WEIGHTS.tolist(), 0.0
    for n, partner in enumerate(PARTNERS.tolist()):
        own, other = softmax(clean[n], 2.5), softmax(clean[partner], 2.5)
        w = weights[n]
        target = [w * a + (1 - w) * b for a, b in zip(own, other, strict=True)]
        total += 2.5**2 * divergence(target, softmax(student[n], 2.5))
    method = STKD(weight=0.7, temperature=2.5, teacher="mixed_output")
    assert loss_of(method).item() == pytest.approx(0.7 * total / 4, rel=1e-12)


@pytest.mark.slow
def test_a_weight_of_1_is_plain_distillation_on_the_samples_themselves():
    ones, plain = torch.ones(4).double(), soft_cross_entropy(STUDENT, TEACHER, 4.0)
    for method in (INPUT, OUTPUT):  # a sample mixed with nothing looks like itself
        torch.testing.assert_close(loss_of(method, weights=ones), plain, rtol=1e-12, atol=0)
    labels = F.cross_entropy(STUDENT, mixed_labels(ones))
    torch.testing.assert_close(labels, F.cross_entropy(STUDENT, TARGETS))


@pytest.mark.slow
def test_a_weight_of_0_is_plain_distillation_on_the_partners():
    zeros, plain = torch.zeros(4).double(), soft_cross_entropy(STUDENT, TEACHER[PARTNERS], 4.0)
    for method in (INPUT, OUTPUT):
        loss = loss_of(method, mixed=TEACHER[PARTNERS], weights=zeros)
        torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)


@pytest.mark.slow
@each("extra", [{}, {"incorrect_only": 2.0}])
def test_own_and_partner_may_change_places_with_their_weights(extra):
    for teacher in ("mixed_input", "mixed_output"):
        method = STKD(teacher=teacher, **extra)
        loss = loss_of(method)
        back = PARTNERS.argsort()  # who is mixed with a sample as its partner
        swapped = loss_of(
            method, clean=TEACHER[PARTNERS], partner=TEACHER, partners=back,
            weights=1 - WEIGHTS, labels=TARGETS[PARTNERS],
        )  # fmt: skip
        torch.testing.assert_close(swapped, loss, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_a_sample_that_is_its_own_partner_is_plain_distillation_for_any_weight():
    plain = soft_cross_entropy(STUDENT, TEACHER, 4.0)
    for method in (INPUT, OUTPUT):
        loss = loss_of(method, partners=torch.arange(4))
        torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    alone = loss_of(
        OUTPUT, STUDENT[:1], TEACHER[:1], TEACHER[:1], partners=torch.tensor([0]),
        weights=WEIGHTS[:1], labels=TARGETS[:1],
    )  # fmt: skip
    torch.testing.assert_close(alone, soft_cross_entropy(STUDENT[:1], TEACHER[:1], 4.0))


@pytest.mark.slow
def test_a_student_that_says_the_same_of_mixed_samples_has_no_loss_and_no_gradient():
    student = TEACHER.clone().requires_grad_()
    loss = loss_of(STKD(incorrect_only=1.0), student)
    loss.backward()
    assert loss.abs() < 1e-12
    assert student.grad.abs().max() < 1e-12


@pytest.mark.slow
def test_both_variants_agree_at_high_temperatures_where_the_teacher_is_affine():
    weights = WEIGHTS[:, None]
    mixed = weights * TEACHER + (1 - weights) * TEACHER[PARTNERS]  # of an affine teacher
    apart = []
    for temperature in (10.0, 100.0, 1000.0):
        changes = {"weight": 1.0, "temperature": temperature}
        one = loss_of(STKD(**changes), mixed=mixed)
        other = loss_of(STKD(**changes, teacher="mixed_output"), mixed=mixed)
        apart.append(abs(one / other - 1).item())
    assert apart[2] < 1e-2
    assert apart[2] < apart[1] / 5 < apart[0] / 25  # falls as 1 / T


@pytest.mark.slow
def test_mixed_outputs_need_what_the_teacher_said_of_single_samples_only():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 10, generator=generator, dtype=torch.float64)  # a cache of 20 rows
    ids, partner_ids = torch.tensor([3, 19, 0, 7]), torch.tensor([5, 3, 0, 11])
    nothing = torch.full((4, 10), torch.nan)  # no one asked about mixed samples
    loss = loss_of(OUTPUT, mixed=nothing, clean=table[ids], partner=table[partner_ids])
    probabilities = F.softmax(table / 4, dim=1)
    w = WEIGHTS[:, None]
    target = w * probabilities[ids] + (1 - w) * probabilities[partner_ids]
    expected = 16 * F.kl_div(F.log_softmax(STUDENT / 4, 1), target, reduction="batchmean")
    torch.testing.assert_close(loss, expected)
    assert OUTPUT.looks().teacher == ("clean", "partner")


@pytest.mark.slow
def test_the_incorrect_classes_are_compared_among_themselves():
    student, teacher, weights, total = STUDENT.tolist(), TEACHER.tolist(), WEIGHTS.tolist(), 0.0
    for n, partner in enumerate(PARTNERS.tolist()):
        present = {TARGETS[n].item()} if weights[n] else set()
        present |= {TARGETS[partner].item()} if weights[n] < 1 else set()
        rest = [c for c in range(10) if c not in present]
        p, q = (softmax([row[c] for c in rest], 3.0) for row in (teacher[n], student[n]))
        total += 9 * divergence(p, q)
    plain, both = STKD(temperature=3.0), STKD(temperature=3.0, incorrect_only=0.25)
    added = (loss_of(both) - loss_of(plain)).item()
    assert added == pytest.approx(0.25 * total / 4, rel=1e-9)


@pytest.mark.slow
def test_the_incorrect_classes_of_mixed_outputs_are_those_of_the_mixed_probabilities():
    target = mixed_output(TEACHER, TEACHER[PARTNERS], WEIGHTS, 4.0).exp()
    present = mixed_labels(WEIGHTS) > 0
    total = 0.0
    for p, q, inside in zip(target, STUDENT, present, strict=True):
        rest = p[~inside] / p[~inside].sum()
        total += 16 * (rest * (rest.log() - F.log_softmax(q[~inside] / 4, dim=0))).sum() / 4
    only = STKD(weight=0.0, incorrect_only=1.0, teacher="mixed_output")
    torch.testing.assert_close(loss_of(only), total)


@pytest.mark.slow
def test_the_student_s_answers_for_the_mixed_classes_do_not_count_among_the_others():
    only = STKD(weight=0.0, incorrect_only=1.0)
    changed = STUDENT + 5 * (mixed_labels(WEIGHTS) > 0)
    torch.testing.assert_close(loss_of(only, changed), loss_of(only))


@pytest.mark.slow
@each("teacher", ["mixed_input", "mixed_output"])
def test_clean_distillation_adds_the_plain_objective_on_the_samples_themselves(teacher):
    clean = STUDENT.flip(1)
    plain = STKD(weight=0.8, teacher=teacher)
    both = STKD(weight=0.8, teacher=teacher, clean_kd=0.5)
    expected = 0.2 * F.cross_entropy(clean, TARGETS) + 0.8 * soft_cross_entropy(clean, TEACHER, 4.0)
    added = loss_of(both, clean_student=clean) - loss_of(plain, clean_student=clean)
    torch.testing.assert_close(added, 0.5 * expected)
    assert both.looks().student == ("given", "clean")
    assert "clean" in both.looks().teacher
    assert plain.looks().student == ("given",)


@pytest.mark.slow
def test_it_mixes_the_samples_as_its_fields_say():
    assert STKD().mixing() == ("mixup", 1.0)
    assert STKD(mix="cutmix", alpha=0.4).mixing() == ("cutmix", 0.4)


@pytest.mark.slow
def test_targets_that_are_not_mixed_name_the_one_class_of_a_sample():
    method = STKD(weight=0.0, incorrect_only=1.0)
    sample = Batch(torch.empty(0), TARGETS, torch.arange(4), 0, 0)
    hard = method.losses(Outputs(STUDENT), Outputs(TEACHER), sample, None)["logits"]
    soft = loss_of(method, weights=torch.ones(4).double())
    torch.testing.assert_close(hard, soft)
