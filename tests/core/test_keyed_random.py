"""Keyed random numbers: what they are, and that they depend on nothing but their key."""

import math

import pytest
import torch
from torch import Tensor

from raykd.core import keyed_random
from tests.tiers import slow_but

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
# Quantiles of chi-square with 255 degrees of freedom. Keys are fixed: a test passes or fails for
# ever, and the second quantile is for the 32 statistics of one test.
CHI_999, CHI_9999 = 330.5, 347.7
CHI_999_999, CHI_9311_999 = 1142.8, 9738.4  # with 999 and with 9,311 degrees of freedom


class SplitMix64:
    """The generator of Steele, Lea and Flood (2014) as its reference code in C has it."""

    def __init__(self, state: int) -> None:
        self.state = state % WORD

    def next(self) -> int:
        self.state = (self.state + GOLDEN) % WORD
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        return z ^ (z >> 31)


def hashed(*words: int) -> int:
    """A word is added to the state, and the generator's number there is the next state."""
    state = 0
    for word in words:
        state = SplitMix64(state + word).next()
    return state


def expected(seed: int, ids: list[int], view: int, stream: int) -> list[int]:
    """Sample i gets number i of the generator that starts at the hash of the rest of the key."""
    start = hashed(seed, view, stream) - GOLDEN
    return [SplitMix64(start + i * GOLDEN).next() for i in ids]


def unsigned(values: Tensor) -> list[int]:
    return [value % WORD for value in values.tolist()]


def chi_square(cells: Tensor, count: int) -> float:
    """Pearson's statistic of cell numbers against the uniform distribution."""
    seen = torch.bincount(cells, minlength=count).double()
    mean = len(cells) / count
    return float(((seen - mean) ** 2 / mean).sum())


def test_the_second_implementation_gives_the_published_numbers():
    # The first outputs for the seed 1234567, as Vigna's splitmix64.c prints them.
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_are_splitmix64_with_the_sample_as_position():
    for view, stream in [(0, 0), (7, 2), (10**6, 5)]:
        for seed in [0, 1, 12345, 2**63 - 1, 2**64 - 1]:
            ids = [0, 1, 2, 3, 49_999, 2**31, 2**40, 2**62]
            drawn = keyed_random.draw(seed, torch.tensor(ids), view, stream)
            assert drawn.dtype == torch.int64
            assert unsigned(drawn) == expected(seed, ids, view, stream)


def test_consecutive_samples_get_consecutive_numbers_of_one_generator():
    generator = SplitMix64(hashed(3, 5, 1) - GOLDEN)
    assert unsigned(keyed_random.draw(3, torch.arange(50), 5, 1)) == [
        generator.next() for _ in range(50)
    ]


def test_a_draw_is_the_same_in_any_batch_and_order():
    ids = torch.arange(1000) * 37
    whole = keyed_random.draw(1, ids, 2, keyed_random.ORDER)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_random.draw(1, ids[shuffled], 2, keyed_random.ORDER), whole[shuffled])
    for size in (1, 7, 64, 999):
        parts = [keyed_random.draw(1, part, 2, keyed_random.ORDER) for part in ids.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(
        keyed_random.draw(1, ids.view(10, 100), 2, keyed_random.ORDER), whole.view(10, 100)
    )


def test_drawing_leaves_torch_s_generator_and_the_ids_alone():
    ids, before = torch.arange(10), torch.get_rng_state()
    keyed_random.uniform(0, ids, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ids, torch.arange(10))


def test_uniform_takes_the_24_highest_bits():
    ids = list(range(500))
    values = keyed_random.uniform(9, torch.tensor(ids), 4, 3)
    assert values.dtype == torch.float32
    assert values.tolist() == [word / 2**24 for word in (w >> 40 for w in expected(9, ids, 4, 3))]
    assert values.min() >= 0 and values.max() < 1


KEYS = {
    "samples": [(0, i, 0, 0) for i in range(65_536)],
    "views": [(0, 0, view, 0) for view in range(16_384)],
    "seeds": [(seed, 0, 0, 0) for seed in range(16_384)],
    "streams": [(0, 0, 0, stream) for stream in range(16_384)],
}


@pytest.mark.slow
@pytest.mark.parametrize("axis", slow_but(KEYS, ["samples", "views"]))
def test_draws_along_every_part_of_the_key_are_uniform(axis):
    if axis == "samples":
        drawn = keyed_random.draw(0, torch.arange(len(KEYS[axis])), 0, 0)
    else:
        zero = torch.zeros(1, dtype=torch.int64)
        drawn = torch.cat([keyed_random.draw(s, zero + i, v, t) for s, i, v, t in KEYS[axis]])
    for low in range(0, 64, 8):
        assert chi_square((drawn >> low) & 255, 256) < CHI_9999


NEIGHBOURS = {
    "views": ((1, 0, 0), (1, 1, 0)),
    "seeds": ((1, 0, 0), (2, 0, 0)),
    "streams": ((1, 0, keyed_random.CROP_STEP), (1, 0, keyed_random.CROP_START)),
    "swapped words": ((1, 2, 0), (2, 1, 0)),
}


def test_neighbouring_keys_are_independent():
    for (seed, view, stream), (seed2, view2, stream2) in NEIGHBOURS.values():
        ids = torch.arange(65_536)
        one = keyed_random.uniform(seed, ids, view, stream)
        two = keyed_random.uniform(seed2, ids, view2, stream2)
        for lag in range(3):  # a shifted copy of one stream would pass a test at lag 0 alone
            joint = (one[lag:] * 16).long() * 16 + (two[: len(two) - lag] * 16).long()
            assert chi_square(joint, 256) < CHI_999


def test_neighbouring_samples_are_independent():
    values = keyed_random.uniform(0, torch.arange(65_537), 0, 0)
    joint = (values[1:] * 16).long() * 16 + (values[:-1] * 16).long()
    assert chi_square(joint, 256) < CHI_999


def test_below_stays_below():
    for count in [1, 2, 3, 54, 162, 1000, 2**31 - 1, 2**31]:
        ids = torch.arange(20_000)
        numbers = keyed_random.below(5, ids, 1, 2, count)
        assert numbers.dtype == torch.int64
        assert int(numbers.min()) >= 0 and int(numbers.max()) < count
        words = expected(5, ids[:100].tolist(), 1, 2)
        assert numbers[:100].tolist() == [(word >> 32) * count >> 32 for word in words]
        if count <= 1000:
            assert len(numbers.unique()) == count


def test_below_is_uniform():
    assert chi_square(keyed_random.below(0, torch.arange(65_536), 0, 0, 256), 256) < CHI_999


def shuffled(count: int, ids: Tensor, seed: int = 0, view: int = 0, stream: int = 0) -> Tensor:
    """Every place of a shuffle for each sample, int64 [B, count]."""
    counts = torch.full((len(ids),), count)
    return keyed_random.shuffled(seed, ids, view, stream, torch.arange(count), counts)


def test_a_shuffle_is_a_permutation():
    for count in [1, 2, 3, 10, 97, 1000]:
        ids = torch.tensor([0, 1, 2, 49_999, 2**31, 2**62])
        for seed, view, stream in (
            (0, 0, 0),
            (1, 0, 0),
            (2**63 - 1, 10**6, keyed_random.NEGATIVES),
        ):
            rows = shuffled(count, ids, seed, view, stream)
            assert rows.dtype == torch.int64
            assert torch.equal(rows.sort(1).values, torch.arange(count).expand(len(ids), -1))


def test_every_key_has_a_shuffle_of_its_own():
    rows = {tuple(row) for row in shuffled(97, torch.arange(1000)).tolist()}
    assert len(rows) == 1000
    base = shuffled(97, torch.arange(50))
    for other in ({"seed": 1}, {"view": 1}, {"stream": 1}):
        moved = shuffled(97, torch.arange(50), **other)
        assert (moved != base).any(1).all()
        # A random permutation leaves one place as it was: 50 shuffles agree in 50 +- 7 of 4,850.
        assert (moved == base).sum() < 50 + 6 * 7


def test_a_shuffle_is_a_function_of_its_key_in_any_batch_and_beside_any_counts():
    ids, places = torch.arange(200) * 37, torch.arange(30)
    counts = 30 + ids % 1000
    whole = keyed_random.shuffled(1, ids, 2, keyed_random.NEGATIVES, places, counts)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    moved = keyed_random.shuffled(1, ids[order], 2, keyed_random.NEGATIVES, places, counts[order])
    assert torch.equal(moved, whole[order])
    for row in (0, 7, 199):
        own = keyed_random.shuffled(
            1, ids[row, None], 2, keyed_random.NEGATIVES, places[11:], counts[row, None]
        )
        assert torch.equal(own[0], whole[row, 11:])
    assert (whole < counts[:, None]).all()
    assert all(len(set(row)) == 30 for row in whole.tolist())
    before = torch.get_rng_state()
    shuffled(10, torch.arange(5))
    assert torch.equal(torch.get_rng_state(), before)


def walked(seed: int, sample: int, view: int, stream: int, place: int, count: int) -> int:
    """Value at an index of a shuffle, by walking past every cell outside of it."""
    side = math.isqrt(count - 1) + 1
    other = -(-count // side)
    key = expected(seed, [sample], view, stream)[0]
    while True:
        left, right = divmod(place, other)
        for turn in range(3):
            left = (left + halved(key, right, 2 * turn)) % side
            right = (right + halved(key, left, 2 * turn + 1)) % other
        place = left * other + right
        if place < count:
            return place


def halved(key: int, half: int, number: int) -> int:
    """The round function: 31 bits of SplitMix64 at a position of the stream that the key starts."""
    return SplitMix64(key + (half + (number << 32) - 1) * GOLDEN).next() >> 33


def test_a_shuffle_walks_past_the_cells_that_are_no_places():
    for most in [None, 0, 10**6]:
        for count in [2, 3, 5, 26, 97, 101, 1000, 10_001]:
            ids = torch.tensor([0, 7, 123_456])
            places = torch.arange(min(count, 60))
            found = keyed_random.shuffled(
                4,
                ids,
                2,
                keyed_random.NEGATIVES,
                places,
                torch.full((3,), count),
                count if most == 0 else most,
            )
            assert found.tolist() == [
                [
                    walked(4, sample, 2, keyed_random.NEGATIVES, place, count)
                    for place in places.tolist()
                ]
                for sample in ids.tolist()
            ]


def test_any_number_may_stand_at_any_place_of_a_shuffle():
    for count, quantile in [(256, CHI_999), (1000, CHI_999_999)]:
        ids = torch.arange(65_536)
        # A square grid, and one with cells that are no places.
        counts = torch.full_like(ids, count)
        numbers = keyed_random.shuffled(0, ids, 0, 0, torch.tensor([0, 255]), counts)
        assert chi_square(numbers[:, 0], count) < quantile
        assert chi_square(numbers[:, 1], count) < quantile


def test_two_places_of_a_shuffle_hold_any_two_numbers():
    # 97: on grids of a few cells the few rounds show (counts of 25 and less).
    ids = torch.arange(65_536)
    rows = keyed_random.shuffled(0, ids, 0, 0, torch.tensor([3, 4]), torch.full_like(ids, 97))
    seen = torch.bincount(rows[:, 0] * 97 + rows[:, 1], minlength=97 * 97).view(97, 97).double()
    assert not seen.diagonal().any()
    mean = len(ids) / (97 * 96)
    pairs = seen[~torch.eye(97, dtype=torch.bool)]
    assert ((pairs - mean) ** 2 / mean).sum() < CHI_9311_999


def test_the_first_places_of_a_shuffle_are_a_fair_sample_without_repetition():
    # 4,096 samples of 64 of 256 numbers; a sample without repetition varies 1 - 64 / 256 as much.
    ids = torch.arange(4096)
    rows = keyed_random.shuffled(0, ids, 0, 0, torch.arange(64), torch.full_like(ids, 256))
    assert chi_square(rows.flatten(), 256) / 0.75 * 255 / 256 < CHI_999


def test_seed_names_a_tuple_of_integers():
    words = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (0, 0, 0), (2**64 - 1,)]
    named = [keyed_random.seed(*tuple_) for tuple_ in words]
    assert named == [hashed(*tuple_) >> 1 for tuple_ in words]
    assert len(set(named)) == len(words)
    assert all(0 <= value < 2**63 for value in named)
    for value in named:
        torch.Generator().manual_seed(value)


def test_every_decision_has_a_stream_of_its_own():
    streams = [
        value for name, value in vars(keyed_random).items() if name[0].isalpha() and name.isupper()
    ]
    assert keyed_random.ORDER in streams
    assert len(set(streams)) == len(streams)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits():
    ids = torch.arange(100_000)
    for draw in (keyed_random.draw, keyed_random.uniform):
        assert torch.equal(draw(3, ids.cuda(), 4, 1).cpu(), draw(3, ids, 4, 1))


def test_several_streams_at_once_are_those_one_by_one():
    ids, streams = torch.tensor([0, 1, 5, 2**40]), [3, 3 + (1 << 8), 17]
    found = keyed_random.uniforms(7, ids, 2, streams)
    assert torch.equal(found, torch.stack([keyed_random.uniform(7, ids, 2, s) for s in streams]))
