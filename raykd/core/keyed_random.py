"""Random numbers that are a function of a key, the same on every device and in every batch.

The key is (seed, sample id, view, stream). A number never depends on which other samples
are in the batch, on the worker that holds it, or on the order of the epoch. The bits are
SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"):
the stream starts at a hash of (seed, view, stream) and the sample's id is the position in it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's multipliers
_WORD = 1 << 64
_ROUNDS = 3  # rounds of the Feistel network, each of two halves

# Streams: one per independent decision about a sample.
ORDER, CROP_STEP, CROP_START, HOLDOUT, LIMIT, CHECK = range(6)
PARTNER, WEIGHT, BOX_ROW, BOX_COLUMN, NEGATIVES, POSITIVE, OPERATION, STRENGTH, HOLE = range(6, 15)
GATE, VALIDATION = 15, 16
CROP_AREA, CROP_RATIO, CROP_ROW, CROP_COLUMN = range(17, 21)
COLOUR, COLOUR_ORDER, ERASED, ERASED_AREA, ERASED_RATIO, ERASED_ROW, ERASED_COLUMN = range(21, 28)
PROBE, STATISTICS, SIGNS, TEACHERS, CLASSES = 28, 29, 30, 31, 32


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as a non-negative Python integer."""
    return value - _WORD if value >= _WORD >> 1 else value


def _mix_int(z: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    z = (z ^ (z >> 30)) * _FIRST % _WORD
    z = (z ^ (z >> 27)) * _SECOND % _WORD
    return z ^ (z >> 31)


def _hash(*words: int) -> int:
    """64 bits that depend on every word and on their order."""
    state = 0
    for word in words:
        state = _mix_int((state + word + _GOLDEN) % _WORD)
    return state


def _shift(z: Tensor, count: int) -> Tensor:
    """A logical right shift: torch shifts int64 with its sign, so the copies are masked off."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 [...]; the products wrap."""
    z = (z ^ _shift(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift(z, 27)) * _signed(_SECOND)
    return z ^ _shift(z, 31)


def draw(seed: int, ids: Tensor, view: int, stream: int) -> Tensor:
    """64 random bits per sample as int64 [B], for `ids` int64 [B], on the device of `ids`."""
    return _mix(ids * _signed(_GOLDEN) + _signed(_hash(seed, view, stream)))


def uniform(seed: int, ids: Tensor, view: int, stream: int) -> Tensor:
    """float32 [B] in [0, 1), multiples of 2**-24."""
    return _fraction(draw(seed, ids, view, stream))


def uniforms(seed: int, ids: Tensor, view: int, streams: Sequence[int]) -> Tensor:
    """`uniform` of several streams at once: float32 [S, B]."""
    place = ids * _signed(_GOLDEN)
    starts = [_signed(_hash(seed, view, stream)) for stream in streams]
    return _fraction(_mix(torch.stack([place + start for start in starts])))


def _fraction(z: Tensor) -> Tensor:
    """float32 in [0, 1), multiples of 2**-24, from random bits int64."""
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def below(seed: int, ids: Tensor, view: int, stream: int, count: int) -> Tensor:
    """int64 [B] in [0, count), `count` up to 2**31; off from uniform by at most count / 2**32."""
    return (_shift(draw(seed, ids, view, stream), 32) * count) >> 32


def shuffled(
    seed: int,
    ids: Tensor,
    view: int,
    stream: int,
    places: Tensor,
    counts: Tensor,
    most: int | None = None,
) -> Tensor:
    """Values at `places` of a shuffled range(counts), a shuffle for each sample: int64 [B, K].

    `places` are int64 [K], smaller than each of `counts` (int64 [B], up to 2**31). No count is
    above `most`; where that is None, a GPU is waited for. The shuffle is a Feistel network on a
    grid of about the square root of the count (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains", section 6); the few cells of the grid that are no places are walked past.
    Three rounds leave no bias that can be seen from 40 places on; the orders of a handful of
    places are not all equally likely.
    """
    side = counts.double().sqrt().ceil().long().clamp_min(1)[:, None]
    other = (counts[:, None] + side - 1) // side
    keys = draw(seed, ids, view, stream)[:, None]
    value = _turned(places[None, :].expand(len(ids), -1), keys, side, other)
    if most is None:
        most = int(counts.max()) if len(counts) else 0
    spare = math.isqrt(max(0, most - 1))  # cells of a grid that are no places, at most
    if not spare:
        return value
    # Follow the permutation from each spare cell, twice as far each time; no step depends on data,
    # so a GPU is not waited for.
    first = counts[:, None]
    ends = _turned(first + torch.arange(spare, device=ids.device), keys, side, other)
    for _ in range(spare.bit_length()):
        ends = _past(ends, first, ends)
    return _past(value, first, ends)


def _past(value: Tensor, counts: Tensor, ends: Tensor) -> Tensor:
    """Cells [B, K], and instead of those beyond the `counts` [B, 1] places, their `ends` [B, E]."""
    beyond = value - counts
    return torch.where(beyond >= 0, ends.gather(1, beyond.clamp(0, ends.shape[1] - 1)), value)


def _turned(value: Tensor, keys: Tensor, side: Tensor, other: Tensor) -> Tensor:
    """Permuted positions of the cells of grids of side x other."""
    left, right = value // other, value % other
    for turn in range(_ROUNDS):
        left = (left + _round(keys, right, 2 * turn)) % side
        right = (right + _round(keys, left, 2 * turn + 1)) % other
    return left * other + right


def _round(keys: Tensor, half: Tensor, number: int) -> Tensor:
    """A round function of the Feistel network: 31 bits."""
    return _shift(_mix(keys + (half + (number << 32)) * _signed(_GOLDEN)), 33)


def seed(*words: int) -> int:
    """63-bit hash of a tuple of integers, to seed a generator of torch."""
    return _hash(*words) >> 1


def drawn_seed() -> int:
    """62 bits from torch's generator, which the run seeds when it makes helpers.

    All workers, and a resumed run, get the same bits.
    """
    return int(torch.randint(1 << 62, ()))
