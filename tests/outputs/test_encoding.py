"""Errors that storage adds to a teacher's outputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Signal
from raykd.methods.base import soft_cross_entropy
from raykd.methods.skd import normalise
from raykd.outputs.codecs import Dense, Int8, TopK
from tests.each import each

LOGITS = Signal.LOGITS


def round_trip(logits, **outputs):
    signals = LOGITS | (Signal.EMBEDDING if outputs else Signal(0))
    columns = Dense().encode(Outputs(logits, **outputs), signals)
    return Dense().decode(columns, torch.arange(len(logits)))


@given(st.integers(0, 10_000), st.floats(0.1, 30), st.floats(-1000, 1000))
@settings(max_examples=50, deadline=None)
def test_a_logit_is_off_by_at_most_half_a_float16_step_of_its_distance_from_the_maximum(
    seed, scale, shift
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 50, generator=generator) * scale + shift
    back = round_trip(logits).logits
    below = logits.amax(1, keepdim=True) - logits
    # 2**-11 of the distance, and the float32 rounding of the sum with the maximum.
    allowed = below * 2.0**-11 + 2.0**-24 + logits.abs() * 2.0**-22
    assert bool(((back - logits).abs() <= allowed).all())
    assert torch.equal(back.amax(1), logits.amax(1))


def test_the_divergence_to_the_stored_distribution_is_below_1e_6():
    # The goal for the default cache at temperature 4; 6.5e-8 was measured on a real teacher.
    generator = torch.Generator().manual_seed(0)
    logits = (5.5 * torch.randn(2000, 100, generator=generator)).double()
    stored = round_trip(logits.float()).logits.double()
    assert soft_cross_entropy(stored, logits, 4.0) / 16 < 1e-6
    assert soft_cross_entropy(stored, logits, 1.0) < 1e-6


def test_spherical_targets_keep_their_radius():
    logits = 4 * torch.randn(100, 20, generator=torch.Generator().manual_seed(1))
    apart = normalise(round_trip(logits).logits, 2.0) - normalise(logits, 2.0)
    # Half a float16 step of a distance of up to 16 is 2**-8; the radius halves it.
    assert apart.abs().max() < 4e-3


def test_a_logit_far_below_the_maximum_has_still_no_probability():
    logits = torch.tensor([[0.0, -1e6], [1e6, 0.0]])
    back = round_trip(logits).logits
    assert torch.equal(F.softmax(back, 1), F.softmax(logits, 1))


def test_embeddings_are_stored_beside_the_logits():
    embedding = torch.randn(5, 16)
    back = round_trip(torch.randn(5, 3), embedding=embedding)
    torch.testing.assert_close(back.embedding, embedding, rtol=1e-3, atol=1e-6)
    with pytest.raises(LookupError, match="EMBEDDING"):
        _ = round_trip(torch.randn(5, 3)).embedding


@given(st.integers(0, 10_000), st.floats(0.1, 30), st.floats(-1000, 1000))
@settings(max_examples=50, deadline=None)
def test_an_int8_is_off_by_half_a_step_of_the_row_s_range_and_not_at_its_maximum(
    seed, scale, shift
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 50, generator=generator) * scale + shift
    columns = Int8().encode(Outputs(logits), LOGITS)
    back = Int8().decode(columns, torch.arange(7)).logits
    width = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
    # And the float32 rounding of the sum with the maximum.
    assert bool(((back - logits).abs() <= width / 510 * 1.001 + logits.abs() * 2.0**-22).all())
    assert torch.equal(back.amax(1), logits.amax(1))


def test_a_constant_row_is_constant_as_int8():
    logits = torch.tensor([[3.25] * 5, [-1e6] * 5])
    columns = Int8().encode(Outputs(logits), LOGITS)
    assert torch.equal(Int8().decode(columns, torch.arange(2)).logits, logits)


def test_a_row_for_which_256_levels_are_too_few_is_refused():
    logits = torch.zeros(4, 5)
    logits[2, 1] = -1e9
    with pytest.raises(ValueError, match=r"row 2 .*65504 apart.*use codec: dense or topk"):
        Int8().encode(Outputs(logits), LOGITS)


def test_an_output_that_is_not_finite_is_refused_and_its_row_named():
    for value in [float("nan"), float("inf"), float("-inf")]:
        for codec in [Dense(), Int8(), TopK(k=2)]:
            logits = torch.zeros(4, 3)
            logits[2, 1] = value
            if value == float("-inf"):
                logits[2] = value  # a single one would be stored as the lowest number
            with pytest.raises(ValueError, match="row 2"):
                codec.encode(Outputs(logits), LOGITS)


def test_embeddings_beyond_float16_are_refused_with_the_codecs_that_hold_them():
    embedding = torch.zeros(4, 3)
    embedding[1, 2], embedding[2, 0] = 8e4, 65504
    with pytest.raises(ConfigError, match=r"up to 8e\+04, .*ends at 65504.*run\.embedding_codec"):
        Dense().encode(Outputs(embedding=embedding), Signal.EMBEDDING)
    embedding[2, 0] = float("inf")
    with pytest.raises(ValueError, match=r"row 2 of the teacher's embedding .* not finite"):
        Dense().encode(Outputs(embedding=embedding), Signal.EMBEDDING)


@each("codec", [Dense(), Int8()])
def test_the_bytes_of_a_row_are_what_the_columns_take(codec):
    outputs = Outputs(torch.zeros(3, 10), embedding=torch.zeros(3, 8))
    size = sum(column.nbytes for column in codec.encode(outputs, Signal(3)).values())
    assert size == 3 * codec.bytes_per_row(10, 8)
    assert codec.bytes_per_row(10) == (18 if codec == Int8() else 24)
