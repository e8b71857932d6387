"""The codec of few classes, against the same written out naively in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import match_classes, soft_cross_entropy
from raykd.methods.skd import SKD, by_moments, normalise
from raykd.outputs.codecs.topk import TAILS, TopK, bits_for, largest, packed, unpacked
from tests.each import each

HALF = 2.0**-11  # the relative error of a float16
CLASSES = (2, 10, 100, 1000, 1024, 1025, 21841)


def logits_of(rows, classes, scale=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator) + 50


def through(logits, k, tail="uniform"):
    codec = TopK(k=k, tail=tail)
    columns = codec.encode(Outputs(logits), Signal.LOGITS)
    return codec.decode(columns, torch.arange(len(logits)), logits.shape[1])


def naive(row, k):
    """The k largest of a list with their classes, and the logsumexp, mean and std of a row."""
    top = max(row)
    ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
    kept, left = ranked[:k], ranked[k:]
    tail = math.log(math.fsum(math.exp(row[c] - top) for c in left))
    mean = math.fsum(value - top for value in row) / len(row)
    variance = math.fsum((value - top - mean) ** 2 for value in row) / len(row)
    return kept, [row[c] - top for c in kept], tail, mean, math.sqrt(variance)


@given(st.sampled_from(CLASSES), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_class_numbers_survive_packing_in_as_few_bytes_as_their_bits_fill(classes, k, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, classes, (5, k), generator=generator)
    numbers[0], numbers[1] = 0, classes - 1
    bits = bits_for(classes)
    assert 2**bits >= classes > 2 ** (bits - 1)
    data = packed(numbers, bits)
    assert data.shape == (5, -(-k * bits // 8))
    assert torch.equal(unpacked(data, k, bits), numbers)
    whole = int.from_bytes(bytes(data[2].tolist()), "little")
    assert [whole >> bits * place & (2**bits - 1) for place in range(k)] == numbers[2].tolist()


def test_what_is_stored_is_what_sorting_and_summing_in_float64_gives():
    for classes, k in [(10, 1), (10, 9), (100, 10), (1000, 10), (1024, 100)]:
        logits = logits_of(6, classes)
        found = through(logits, k, "ghost")
        assert found.logits.shape == (6, k + 1)
        for number, row in enumerate(logits.tolist()):
            kept, values, tail, mean, deviation = naive(row, k)
            assert found.kept[number].tolist() == kept
            wanted = torch.tensor([*values, tail])
            # A float16's rounding, and the float32 difference of a logit of 50 and the maximum.
            torch.testing.assert_close(found.logits[number], wanted, rtol=HALF, atol=1e-5)
            assert found.moments[number, 0].item() == pytest.approx(mean, rel=HALF)
            assert found.moments[number, 1].item() == pytest.approx(deviation, rel=1e-5)


def test_a_uniform_tail_has_the_mass_of_the_classes_that_it_stands_for():
    for k in [1, 3, 9]:
        logits = logits_of(50, 10, scale=2.0)
        kept = logits.topk(k).indices
        live, found = logits.double().softmax(1), through(logits, k).logits.double().softmax(1)
        outside = torch.ones_like(live).scatter(1, kept, 0.0)
        # The rounding of logits that lie up to 12 below the maximum.
        torch.testing.assert_close(
            (found * outside).sum(1), (live * outside).sum(1), rtol=1e-2, atol=0
        )
        torch.testing.assert_close(
            found.gather(1, kept), live.gather(1, kept), rtol=2e-2, atol=1e-6
        )
        each = found.masked_fill(outside == 0, math.nan)
        spread = each.nan_to_num(1e9).amin(1) - each.nan_to_num(-1e9).amax(1)
        assert spread.abs().max() == 0


def test_a_renormalised_row_gives_all_probability_to_the_classes_that_are_kept():
    logits = logits_of(20, 30)
    kept = logits.topk(4).indices
    found = through(logits, 4, "renormalise").logits.softmax(1)
    torch.testing.assert_close(found.gather(1, kept).sum(1), torch.ones(20))
    expected = logits.gather(1, kept).softmax(1)
    torch.testing.assert_close(found.gather(1, kept), expected, rtol=1e-2, atol=1e-6)  # float16


def test_the_live_logits_say_what_is_stored_of_them():
    for lowest in [0.0, -1e6, -1e30]:
        logits = logits_of(6, 12)
        logits[:, 3] += lowest  # beyond what float16 can hold
        found = through(logits, 4, "ghost")
        expected, stored = TopK(k=4).stored(logits, found)
        torch.testing.assert_close(expected, stored, rtol=HALF, atol=1e-5)


def test_no_tail_gives_nan_at_any_temperature():
    for temperature in [0.5, 1.0, 2.0, 4.0, 20.0]:
        for tail in TAILS:
            logits = logits_of(6, 12)
            logits[0], logits[1, 3] = 0.0, 1e6  # a constant row, and one whose tail is out of sight
            logits[2, 5], logits[3] = float("-inf"), -1e30
            student = (0.1 * torch.randn(6, 12)).requires_grad_()
            teacher = through(logits, 3, tail)
            mine = match_classes(Outputs(student), teacher)
            loss = soft_cross_entropy(mine.logits, teacher.logits, temperature)
            loss.backward()
            assert bool(loss.isfinite())
            assert bool(student.grad.isfinite().all())
            helpers = SKD(radius=2.0).helpers(None, None)
            if tail != "ghost":
                sample = Batch(torch.empty(0), torch.zeros(6).long(), torch.arange(6), 0, 0)
                for variant in ("layer_norm", "teacher_std"):
                    method = SKD(radius=2.0, variant=variant, temperature=temperature)
                    losses = method.losses(Outputs(torch.randn(6, 12)), teacher, sample, helpers)
                    assert bool(losses["logits"].isfinite())


def test_a_ghost_is_compared_as_one_class_of_k_and_one():
    logits, student = logits_of(9, 15, scale=2.0), logits_of(9, 15, seed=1).requires_grad_()
    teacher = through(logits, 4, "ghost")
    found = soft_cross_entropy(match_classes(Outputs(student), teacher).logits, teacher.logits, 1.0)
    (gradient,) = torch.autograd.grad(found, student)
    expected, of_student = 0.0, torch.zeros(9, 15, dtype=torch.float64)
    for number, row in enumerate(logits.tolist()):
        kept = naive(row, 4)[0]
        p = logits[number].double().softmax(0)
        q = student[number].detach().double().softmax(0)
        groups = [[c] for c in kept] + [[c for c in range(15) if c not in kept]]
        for group in groups:
            mass, mine = p[group].sum(), q[group].sum()
            expected += (mass * (mass / mine).log()).item() / 9
            of_student[number, group] = q[group] / mine * (mine - mass) / 9
    assert found.item() == pytest.approx(expected, rel=1e-3)  # float16
    torch.testing.assert_close(gradient.double(), of_student, rtol=1e-2, atol=1e-4)


def test_a_ghost_never_says_more_than_all_classes_do():
    logits, student = logits_of(9, 15), logits_of(9, 15, seed=1)
    whole, before = soft_cross_entropy(student, logits, 1.0), 0.0
    for k in (1, 4, 10, 14):
        teacher = through(logits, k, "ghost")
        found = soft_cross_entropy(
            match_classes(Outputs(student), teacher).logits, teacher.logits, 1.0
        )
        assert before <= found.item() + 1e-3 <= whole.item() + 2e-3  # float16
        before = found.item()


def test_without_a_ghost_the_student_stays_as_it_is():
    student = Outputs(torch.randn(3, 12))
    assert match_classes(student, through(logits_of(3, 12), 3)) is student


def test_of_equal_logits_the_lower_classes_are_kept():
    logits = torch.tensor([[1.0, 5.0, 5.0, -0.0, 0.0, 5.0], [0.0] * 6, [-1.0, -0.0, 0.0, -2, 0, 0]])
    assert largest(logits, 4).tolist() == [[1, 2, 5, 0], [0, 1, 2, 3], [1, 2, 4, 5]]


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_the_largest_are_those_of_a_stable_sort(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 31, generator=generator).mul(3).round() - 1  # many are equal
    expected = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(largest(logits, k), expected)


def test_as_many_as_there_are_is_refused():
    for k in [10, 11, 1000]:
        with pytest.raises(ValueError, match=f"keeps {k} of 10 classes"):
            through(logits_of(3, 10), k)


def test_a_row_of_1000_classes_takes_39_bytes_for_10_of_them():
    columns = TopK().encode(Outputs(logits_of(4, 1000)), Signal.LOGITS)
    assert sum(column.nbytes for column in columns.values()) == 4 * 39
    assert TopK(k=10).bytes_per_row(1000) == 39


def test_the_bytes_of_a_row_are_what_the_columns_take():
    for k in [1, 2, 5]:
        for classes in [2, 10, 1000, 21841]:
            if k < classes:
                outputs = Outputs(logits_of(3, classes), embedding=torch.zeros(3, 8))
                columns = TopK(k=k).encode(outputs, Signal(3))
                size = sum(column.nbytes for column in columns.values())
                assert size == 3 * TopK(k=k).bytes_per_row(classes, 8)


def test_spherical_targets_are_normalised_by_the_moments_of_all_classes():
    logits = logits_of(40, 100)
    found = through(logits, 5)
    kept = logits.topk(5).indices
    live = normalise(logits.double(), 2.0).gather(1, kept)
    stored = by_moments(found.logits, found.moments, 2.0).gather(1, kept).double()
    # The deviation is exact; the mean and each value are float16 of a distance of up to 24.
    apart = (stored - stored.amax(1, keepdim=True)) - (live - live.amax(1, keepdim=True))
    assert apart.abs().max() < 2 * HALF * 24 / 4
    own = normalise(found.logits, 2.0).gather(1, kept).double()
    assert ((own - own.amax(1, keepdim=True)) - (live - live.amax(1, keepdim=True))).abs().max() > 1


@each("variant", ["layer_norm", "teacher_std"])
def test_spherical_distillation_of_all_classes_but_one_is_that_of_all(variant):
    logits, mine = logits_of(16, 20), Outputs(logits_of(16, 20, seed=1))
    sample = Batch(torch.empty(0), torch.zeros(16).long(), torch.arange(16), 0, 0)
    losses = []
    for teacher in (Outputs(logits), through(logits, 19)):
        method = SKD(variant=variant)
        helpers = method.helpers(None, None)
        if method.needs_calibration(helpers):
            method.calibrate(helpers, [teacher])
        scores = method.scores(mine, teacher, helpers)
        loss = method.losses(mine, teacher, sample, helpers)["logits"]
        losses.append(torch.stack([loss, F.cross_entropy(scores, sample.targets)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)  # float16


def test_rows_take_moments_and_classes_with_them():
    found = through(logits_of(8, 12), 3, "ghost")
    rows = torch.tensor([6, 2])
    some = found.rows({"logits": rows})
    assert torch.equal(some.logits, found.logits[rows])
    assert torch.equal(some.moments, found.moments[rows])
    assert torch.equal(some.kept, found.kept[rows])
