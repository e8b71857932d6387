"""The logits of both networks by which a method compares them."""

import torch

from raykd.core.types import Outputs
from raykd.methods import METHODS
from raykd.methods.at import AT
from raykd.methods.base import precise
from raykd.methods.combine import Combine
from raykd.methods.pkt import PKT
from raykd.methods.sakd import SAKD
from raykd.methods.skd import EPSILON, SKD
from tests.each import each
from tests.small import ALL, batch, golden_logits, helpers_of, outputs_of, pair, pair_for
from tests.tiers import slow_but

STUDENT, TEACHER, _ = golden_logits()


def compared(method, student, teacher):
    return method.comparable(Outputs(student), Outputs(teacher), method.helpers(None, None))


@each("radius", [1.0, 3.0])
def test_spherical_kd_compares_both_after_its_normalisation(radius):
    mine, theirs = compared(SKD(radius=radius), STUDENT, TEACHER)
    for found, logits in ((mine, STUDENT), (theirs, TEACHER)):
        centred = logits - logits.mean(1, keepdim=True)
        deviation = (centred.square().mean(1, keepdim=True) + EPSILON).sqrt()
        torch.testing.assert_close(found, radius * centred / deviation)


def test_the_sphere_and_the_teacher_s_deviation_are_compared_as_they_are_distilled():
    mine, theirs = compared(SKD(variant="l2", radius=2.0), STUDENT, TEACHER)
    for found, logits in ((mine, STUDENT), (theirs, TEACHER)):
        torch.testing.assert_close(found, 2 * logits / logits.norm(dim=1, keepdim=True))
    mine, theirs = compared(SKD(variant="teacher_std"), STUDENT, TEACHER)
    assert torch.equal(theirs, TEACHER)
    torch.testing.assert_close(mine.std(1), TEACHER.std(1))


@each("variant", ["layer_norm", "teacher_std"])
def test_a_student_without_a_loss_is_at_no_distance(variant):
    scaled = 0.1 * TEACHER + torch.arange(4.0, dtype=torch.float64)[:, None]
    mine, theirs = compared(SKD(variant=variant, radius=3.0), scaled, TEACHER)
    torch.testing.assert_close(mine.softmax(1), theirs.softmax(1), rtol=1e-5, atol=1e-8)


@each("name", slow_but((name for name in METHODS if name != "spherical_kd"), ["kd", "simkd"]))
def test_any_other_method_compares_its_scores_with_the_teacher_s_own_logits(name):
    method = METHODS[name]()
    student, teacher = pair_for(method)
    helpers = helpers_of(method, student, teacher).eval()
    sample = batch()
    mine, theirs = (outputs_of(network, sample, ALL) for network in (student.eval(), teacher))
    found = method.comparable(mine, theirs, helpers)
    assert torch.equal(found[0], method.scores(mine, None, helpers))
    assert torch.equal(found[1], precise(theirs.logits))


@each(
    "method",
    [Combine(combine=(SKD(radius=3.0), PKT())), SAKD(base=SKD(radius=3.0))],
    ids=lambda method: method.label,
)
def test_a_method_that_wraps_spherical_kd_compares_as_it_does(method):
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher).eval()
    sample = batch()
    mine, theirs = (outputs_of(network, sample, ALL) for network in (student.eval(), teacher))
    expected = compared(SKD(radius=3.0), mine.logits, theirs.logits)
    for found, wanted in zip(method.comparable(mine, theirs, helpers), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_sum_without_it_compares_plain_logits():
    mine, theirs = compared_in(Combine(combine=(AT(), PKT())))
    assert torch.equal(mine, STUDENT) and torch.equal(theirs, TEACHER)


def compared_in(method):
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher)
    return method.comparable(Outputs(STUDENT), Outputs(TEACHER), helpers)
