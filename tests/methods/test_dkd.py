"""Decoupled distillation: golden values, the formulas sample by sample, and what they add up to."""

import math

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs
from raykd.methods.dkd import DKD, other_divergence, target_divergence
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
EPOCH = 100  # after every warm-up


def loss_of(method, student=STUDENT, teacher=TEACHER, targets=TARGETS, epoch=EPOCH):
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), Outputs(teacher), sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def parts(student, teacher, label, temperature):
    """Of one sample, without T**2: KL, KL of (target, rest), KL of the rest, teacher's p."""
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    other_q, other_p = (
        softmax(r[:label] + r[label + 1 :], temperature) for r in (student, teacher)
    )
    binary = divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    return divergence(p, q), binary, divergence(other_p, other_q), p[label]


def drawn(seed=0, rows=6, classes=7):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, classes, (rows,), generator=generator)


def test_the_terms_have_their_golden_values():
    target = target_divergence(STUDENT, TEACHER, TARGETS, 4.0)
    other = other_divergence(STUDENT, TEACHER, TARGETS, 4.0)
    assert target.item() == pytest.approx(1.1484109, rel=1e-7)
    assert other.item() == pytest.approx(5.376343374, rel=1e-9)
    assert loss_of(DKD()).item() == pytest.approx(44.15915789, rel=1e-9)


@each("temperature", [1.0, 2.5])
def test_the_terms_are_their_formulas_sample_by_sample(temperature):
    student, teacher, labels = drawn()
    rows = zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)
    each = [parts(*row, temperature) for row in rows]
    scale = temperature**2 / len(each)
    target = target_divergence(student, teacher, labels, temperature).item()
    other = other_divergence(student, teacher, labels, temperature).item()
    assert target == pytest.approx(scale * sum(part[1] for part in each), rel=1e-11)
    assert other == pytest.approx(scale * sum(part[2] for part in each), rel=1e-11)
    loss = loss_of(DKD(temperature=temperature, alpha=0.3, beta=5.0), student, teacher, labels)
    assert loss.item() == pytest.approx(0.3 * target + 5 * other, rel=1e-12)


@pytest.mark.slow
def test_plain_distillation_is_the_target_s_part_and_the_rest_s_share_of_the_other_part():
    student, teacher, labels = drawn(1)
    for row in range(len(labels)):
        mine, theirs, label = student[row, None], teacher[row, None], labels[row, None]
        p = F.softmax(theirs / 4, dim=1)[0, label]
        whole = 16 * F.kl_div(F.log_softmax(mine / 4, 1), F.softmax(theirs / 4, 1), reduction="sum")
        target = target_divergence(mine, theirs, label, 4.0)
        other = other_divergence(mine, theirs, label, 4.0)
        assert (target + (1 - p) * other).item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.slow
def test_both_terms_warm_up_over_the_first_epochs():
    full = loss_of(DKD()).item()
    shares = [loss_of(DKD(), epoch=epoch).item() / full for epoch in (0, 9, 18, 19, 20)]
    assert shares == pytest.approx([0.05, 0.5, 0.95, 1.0, 1.0])
    assert loss_of(DKD(warmup_epochs=0), epoch=0).item() == full


@pytest.mark.slow
def test_a_mixed_sample_counts_as_its_heavier_class():
    partner = TARGETS.roll(1)
    soft = 0.7 * F.one_hot(TARGETS, 10) + 0.3 * F.one_hot(partner, 10)
    assert torch.equal(loss_of(DKD(), targets=soft.float()), loss_of(DKD()))


@pytest.mark.slow
def test_standardised_logits_do_not_show_the_scale_of_either_network():
    # Up to the 1e-7 that is added to a standard deviation of about 2.
    method = DKD(standardise=True, temperature=2.0)
    moved = loss_of(method, 3 * STUDENT - 1, 0.5 * TEACHER + 4)
    torch.testing.assert_close(moved, loss_of(method), rtol=1e-6, atol=0)
    unit = [(z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (STUDENT, TEACHER)]
    torch.testing.assert_close(
        loss_of(DKD(temperature=2.0), *unit), loss_of(method), rtol=1e-6, atol=0
    )


@pytest.mark.slow
def test_a_sure_and_wrong_student_has_its_whole_loss_in_float32():
    student = torch.full((4, 10), -80.0).scatter_(1, TARGETS[:, None], 80.0)
    loss = loss_of(DKD(temperature=1.0, beta=0.0), student, -student)
    assert loss.item() == pytest.approx(160, rel=0.05)  # -log p(rest) = 160 - log 9, exactly told


@pytest.mark.slow
@each("masked", ["label", "others", "all but one"])
def test_a_class_that_the_teacher_leaves_out_adds_nothing(masked):
    student, teacher, labels = drawn()
    student = student.requires_grad_()
    left_out = F.one_hot(labels, teacher.shape[1]).bool()
    left_out = {
        "label": left_out,
        "others": left_out.roll(1, 1) | left_out.roll(2, 1),
        "all but one": ~left_out.roll(1, 1),
    }[masked]
    found = loss_of(DKD(temperature=2.0), student, teacher.masked_fill(left_out, -math.inf), labels)
    # As where the class has next to no probability.
    expected = loss_of(DKD(temperature=2.0), student, teacher.masked_fill(left_out, -1e4), labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(found, student)
    assert bool(gradient.isfinite().all())
