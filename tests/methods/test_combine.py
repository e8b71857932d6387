"""Sums of methods: what is added, handed on, and refused."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from raykd.core.types import Outputs, Signal
from raykd.methods.ab import AB
from raykd.methods.at import AT
from raykd.methods.base import soft_cross_entropy
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.ctkd import CTKD
from raykd.methods.dkd import DKD
from raykd.methods.ft import FT
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.mlkd import MLKD
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.simkd import SimKD
from raykd.methods.skd import SKD
from raykd.methods.stkd import STKD
from raykd.models import measure
from tests.each import each
from tests.small import ALL, batch, helpers_of, outputs_of, pair


def combined(*parts):
    return Combine(combine=parts)


def alone(part, number, helpers, mine, theirs, sample):
    """The losses of a part by itself, with the helpers that it has in the sum."""
    return part.losses(mine, theirs, sample, helpers[str(number)])


def shapes(student, teacher):
    return measure(student, (16, 16)), measure(teacher, (16, 16))


def test_losses_at_different_spots_stay_apart_and_those_at_the_same_spot_are_added():
    parts = KD(weight=1.0), PKT(), AT(), DKD(), RelationalKD()
    method = combined(*parts)
    student, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    mine, theirs = outputs_of(student, sample, ALL), outputs_of(teacher, sample, ALL)
    losses = method.losses(mine, theirs, sample, helpers)
    expected = {}
    for number, part in enumerate(parts):
        for spot, loss in alone(part, number, helpers, mine, theirs, sample).items():
            expected[spot] = expected.get(spot, 0.0) + loss
    assert set(losses) == {"logits", "embedding", "stage1", "stage2", "stage3"}
    torch.testing.assert_close(dict(losses), expected)


def test_the_default_is_the_benchmark_s_crd_and_kd():
    method = Combine()
    assert [part.name for part in method.combine] == ["crd", "kd"]
    assert method.combine[1].weight == 1.0
    assert method.label_weight == 1.0
    assert method.label == "crd + kd"
    student, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    mine, theirs = outputs_of(student, sample, ALL), outputs_of(teacher, sample, ALL)
    losses = method.losses(mine, theirs, sample, helpers)
    plain = soft_cross_entropy(mine.logits, theirs.logits, 4.0)
    torch.testing.assert_close(losses["logits"], plain)
    assert set(losses) == {"logits", "embedding"}


def test_the_order_of_the_parts_changes_nothing_but_the_order_of_helpers():
    student, teacher = pair()
    sample = batch()
    mine, theirs = outputs_of(student, sample, ALL), outputs_of(teacher, sample, ALL)
    sums = []
    for parts in ((KD(), DKD(), PKT()), (PKT(), DKD(), KD())):
        method = combined(*parts)
        sums.append(method.losses(mine, theirs, sample, helpers_of(method, student, teacher)))
    torch.testing.assert_close(dict(sums[0]), dict(sums[1]))


def test_it_needs_and_looks_at_what_any_part_does():
    method = combined(STKD(teacher="mixed_output", clean_kd=1.0), KD(), MLKD(), CC())
    assert method.needs() == Signal.LOGITS | Signal.EMBEDDING
    looks = method.looks()
    assert looks.student[0] == looks.teacher[0] == "given"
    assert set(looks.student) == {"given", "clean", "strong"}
    assert set(looks.teacher) == {"given", "clean", "partner", "strong"}
    assert len(looks.teacher) == 4
    only_mixed = combined(STKD(teacher="mixed_output"), STKD(teacher="mixed_output", weight=0.1))
    assert only_mixed.looks().teacher == ("clean", "partner")


def test_each_part_has_helpers_of_its_own():
    method = combined(CC(), CTKD(), CC(form="gaussian"))
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher)
    assert list(helpers) == ["0", "1", "2"]
    assert set(helpers["0"]) == {"student", "teacher"}
    assert set(helpers["1"]) == {"temperature"}
    assert not list(helpers["2"])
    crd = combined(KD(), CRD(negatives=5))
    memory = crd.helpers(*shapes(student, teacher), torch.arange(40) % 10)["1"]["memory"]
    assert len(memory.student) == 40


def test_the_scores_are_those_of_the_part_that_changes_them():
    student, teacher = pair()
    sample = batch()
    mine, theirs = outputs_of(student, sample, ALL), outputs_of(teacher, sample, ALL)
    plain = combined(KD(), DKD())
    kept = plain.scores(mine, theirs, helpers_of(plain, student, teacher))
    assert torch.equal(kept, mine.logits)
    skd = SKD(radius=2.0)
    for parts in ((KD(), skd), (skd, KD())):
        method = combined(*parts)
        scores = method.scores(mine, theirs, helpers_of(method, student, teacher))
        expected = 2 * F.layer_norm(mine.logits, (10,), eps=1e-7)
        torch.testing.assert_close(scores, expected)


@pytest.mark.slow
def test_every_part_that_asks_for_it_sees_all_of_the_teacher_s_outputs():
    method = combined(SKD(), KD(), CC())
    student, teacher = pair()
    helpers = method.helpers(*shapes(student, teacher))
    assert method.needs_calibration(helpers)

    def outputs() -> Iterator[Outputs]:
        for seed in range(3):
            yield outputs_of(teacher, batch(seed=seed), Signal.LOGITS)

    method.calibrate(helpers, outputs())
    alone = SKD().helpers(*shapes(student, teacher))
    SKD().calibrate(alone, outputs())
    assert torch.equal(helpers["0"]["radius"].value, alone["radius"].value)
    assert not method.needs_calibration(helpers)


def test_what_a_part_needs_to_be_used_is_released_under_its_number():
    method = combined(CC(), SKD(radius=2.0))
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher)
    released = method.releases(helpers)
    assert list(released) == ["1"]
    assert set(released["1"]) == {"radius"}
    assert not combined(CC(), KD()).releases(helpers_of(combined(CC(), KD()), student, teacher))
    # A released student answers with what was kept, and no teacher.
    mine = outputs_of(student, batch(), ALL)
    torch.testing.assert_close(
        method.scores(mine, None, released), method.scores(mine, None, helpers)
    )


def test_the_prelude_s_helpers_go_to_the_part_that_asked_for_it():
    ft, student_teacher = FT(), pair()
    method = combined(KD(), ft)
    assert method.prelude() == ft.prelude()
    assert combined(KD(), AT()).prelude() is None
    helpers = helpers_of(method, *student_teacher)
    before = ft.prelude().method.helpers(*shapes(*student_teacher))
    found = {name: torch.full_like(value, 0.5) for name, value in before.state_dict().items()}
    translator = {k: v.clone() for k, v in helpers["1"]["translator"].state_dict().items()}
    method.load_prelude(helpers, found)
    assert all((value == 0.5).all() for value in helpers["1"]["paraphraser"].state_dict().values())
    for name, value in helpers["1"]["translator"].state_dict().items():
        assert torch.equal(value, translator[name])


def test_samples_are_mixed_as_the_part_that_mixes_says():
    stkd = STKD(mix="cutmix", alpha=0.4)
    assert combined(KD(), stkd).mixing() == ("cutmix", 0.4)
    assert combined(KD(), DKD()).mixing() is None
    assert combined(stkd, STKD(mix="cutmix", alpha=0.4, weight=0.1)).mixing() == ("cutmix", 0.4)


@each(
    ("parts", "complaint"),
    [
        ((KD(),), "two methods or more"),
        ((), "two methods or more"),
        ((KD(), LabelOnly()), "label_only"),
        ((KD(), SimKD()), "simkd"),
        ((SKD(), SKD(radius=2.0)), "changes the scores"),
        ((FT(), AB()), "trains something else before"),
        ((STKD(), STKD(alpha=0.4)), "mixes the samples"),
    ],
)
def test_sums_that_make_no_sense_are_refused(parts, complaint):
    with pytest.raises(ValidationError, match=complaint):
        combined(*parts)


def test_a_sum_is_no_part_of_a_sum():
    with pytest.raises(ValidationError, match="'combine'"):
        Combine.read({"combine": [{"name": "kd"}, {"name": "combine"}]})


def test_the_label_names_the_parts():
    assert combined(PKT(), KD(), SKD(radius=1.0)).label == "pkt + kd + spherical_kd"
