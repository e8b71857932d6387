"""JPEG files that end early: what is left of them is as it was."""

import itertools

import numpy as np
import pytest
from PIL import Image

from raykd.data.decode import decoded
from raykd.data.pictures import look_at
from raykd.data.trimmed import trimmed
from raykd.errors import DataError
from tests.data.files import encoded
from tests.data.photos import photo

SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
RESTARTS = ({}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3})


def noise(source: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(source.integers(0, 256, (height, width, 3), dtype=np.uint8))


def files(source: np.random.Generator, count: int):
    """Baseline files of every kind that Pillow writes, of any size."""
    kinds = itertools.cycle(itertools.product((*SAMPLINGS, None), RESTARTS))
    for number, (sampling, restarts) in zip(range(count), kinds, strict=False):
        height, width = (int(side) for side in source.integers(1, 120, 2))
        image = noise(source, height, width) if number % 2 else photo(number, height, width)
        options = {"quality": int(source.integers(30, 97)), **restarts}
        if sampling is None:
            image = image.convert("L")
        else:
            options["subsampling"] = sampling
        yield encoded(image, "JPEG", **options)


def outcome(data: bytes, rows: int | None = None) -> np.ndarray | None:
    """The pixels of an image; None where it is damaged."""
    try:
        return look_at(data, "it").pixels(rows=rows)
    except DataError:
        return None


def test_rows_that_are_wanted_are_those_of_the_whole_image():
    source = np.random.default_rng(0)
    shorter = 0
    for data in files(source, 150):
        whole = decoded(data, "it")
        for rows in {1, len(whole), *source.integers(1, len(whole) + 1, 4).tolist()}:
            found = look_at(data, "it").pixels(rows=rows)
            assert len(found) >= rows and np.array_equal(found[:rows], whole[:rows])
            shorter += len(found) < len(whole)
    assert shorter > 200


def test_a_damaged_file_is_as_damaged_as_it_was():
    source = np.random.default_rng(1)
    damaged = 0
    for number, data in enumerate(files(source, 400)):
        bad, place = bytearray(data), int(source.integers(200, len(data)))
        if number % 4 == 0:
            del bad[place:]
        elif number % 4 == 1:
            del bad[place : min(place + 40, len(bad) - 2)]
        elif number % 4 == 2:
            bad[place] = 0xFF  # a marker that is none
        else:
            for spot in range(place, min(place + 9, len(bad) - 2)):
                bad[spot] = int(source.integers(256))
        whole, rows = outcome(bytes(bad)), int(source.integers(1, 60))
        part = outcome(bytes(bad), rows)
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert np.array_equal(whole[:rows], part[:rows])
        damaged += whole is None
    assert damaged > 80


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_ends_just_above_the_end_stays_whole(sampling):
    image = noise(np.random.default_rng(2), 64, 40)
    data = encoded(image, "JPEG", subsampling=sampling)
    short = trimmed(data, 30)
    assert short is not None and short[1] == 32
    assert trimmed(data, 60) is None
    assert trimmed(data, 64) is None


def test_what_cannot_be_cut_stays_whole():
    image = photo(3, 90, 70)
    plain = encoded(image, "JPEG")
    assert trimmed(plain, 10) is not None
    assert trimmed(encoded(image, "JPEG", progressive=True), 10) is None
    for data in (plain[:-1], plain + b"\x00", plain[:20] + b"\x00" + plain[20:], plain[:30]):
        assert trimmed(data, 10) is None
    for length in range(0, len(plain), 3):  # wherever it ends
        trimmed(plain[:length] + b"\xff\xd9", 10)


def test_a_note_that_looks_like_a_header_is_passed_over():
    image = noise(np.random.default_rng(4), 80, 50)
    data = encoded(image, "JPEG", comment=b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10 not a header")
    assert trimmed(data, 20) is not None
    assert np.array_equal(look_at(data, "it").pixels(rows=20)[:20], decoded(data, "it")[:20])
