"""One encoded image: the same pixels, or the same sentence, whichever decoder has it."""

import itertools
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features

from raykd.core.errors import DataError
from raykd.data.sources.encoded_image import decode, fault_in, open_image
from tests.data.files import encoded
from tests.data.photos import photo
from tests.each import each
from tests.tiers import slow_but

ORIENTATIONS = range(1, 9)
TURNS = {  # from the picture as it is stored to the picture upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def packet(orientation: int | None) -> bytes:
    """An XMP packet, perhaps with an orientation."""
    tag = b"" if orientation is None else b' tiff:Orientation="%d"' % orientation
    return (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/"
        b"22-rdf-syntax-ns#'><rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/'"
        + tag
        + b"/></rdf:RDF></x:xmpmeta>"
    )


BLOCKS = {
    "nothing": b"",
    "XMP": segment(0xE1, XMP + packet(None) + b" " * 300),
    "ICC": segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\0" * 3000),
    "Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"\0" * 386),
    "comment": segment(0xFE, b"Exif\0\0 is only said here" * 20),
    "unknown": segment(0xE7, b"\xff\xda\xff\xc0" * 100),
}


def tags(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def exif_segment(orientation: int) -> bytes:
    return segment(0xE1, b"Exif\0\0" + tags(orientation).tobytes().removeprefix(b"Exif\0\0"))


def answer(call) -> np.ndarray | str:
    try:
        return call()
    except DataError as error:
        return str(error)


def same(data: bytes) -> np.ndarray | str:
    """The pixels of an image, or the sentence about it: once both ways are seen to agree."""
    one = answer(lambda: decode(data, "it"))
    two = answer(lambda: open_image(data, "it").pixels())
    if isinstance(one, str) or isinstance(two, str):
        assert one == two
        return one
    picture = open_image(data, "it")
    assert (picture.height, picture.width) == one.shape[:2] == two.shape[:2]
    assert np.array_equal(one, two)
    return one


@pytest.mark.parametrize("before", slow_but(BLOCKS, ["XMP"]))
def test_jpeg_files_are_upright_wherever_their_orientation_stands(before):
    for orientation in ORIENTATIONS:
        plain = encoded(photo(orientation, 30, 50), "JPEG")
        expected = TURNS[orientation](decode(plain, "it"))
        for stored in (
            plain[:20] + BLOCKS[before] + exif_segment(orientation) + plain[20:],  # after JFIF's
            plain[:2] + BLOCKS[before] + exif_segment(orientation) + plain[20:],  # without JFIF's
            plain[:20] + exif_segment(orientation) + BLOCKS[before] + plain[20:],
            plain[:20] + BLOCKS[before] + segment(0xE1, XMP + packet(orientation)) + plain[20:],
        ):
            assert np.array_equal(same(stored), expected)


@pytest.mark.parametrize("kind", slow_but(["PNG", "WEBP", "TIFF", "AVIF", "JPEG"], ["JPEG"]))
def test_all_formats_with_an_orientation_are_upright(kind):
    for orientation in ORIENTATIONS:
        if kind == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow reads no AVIF")
        image = photo(orientation, 32, 48)
        options = {"lossless": True} if kind == "WEBP" else {}
        plain = encoded(image, kind, **options)
        turned = encoded(image, kind, exif=tags(orientation), **options)
        assert np.array_equal(same(turned), TURNS[orientation](decode(plain, "it")))


def test_a_png_file_whose_orientation_follows_its_pixels_is_upright():
    plain = encoded(photo(1, 30, 50), "PNG")
    exif = tags(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + exif
    end = plain.index(b"IEND") - 4
    late = plain[:end] + struct.pack(">I", len(exif)) + chunk
    late += struct.pack(">I", zlib.crc32(chunk)) + plain[end:]
    assert np.array_equal(same(late), TURNS[6](decode(plain, "it")))


def test_every_kind_of_image_is_the_same_from_both_decoders():
    image = photo(3, 40, 56)
    animated = {"save_all": True, "append_images": [photo(4, 40, 56)]}
    restarts = ({}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3})
    baseline = itertools.product(("4:4:4", "4:2:2", "4:2:0", "4:1:1"), restarts, (False, True))
    files = [
        encoded(image, "JPEG", subsampling=sampling, progressive=progressive, **restart)
        for sampling, restart, progressive in baseline
    ]
    files += [encoded(image.convert(mode), "JPEG") for mode in ("L", "CMYK", "1")]
    files += [encoded(image, "JPEG", keep_rgb=True)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        files += [encoded(image.copy(), kind, **animated)]  # Pillow's JPEG options stay with it
    files += [encoded(image, "MPO", **animated)]
    for mode in ("1", "L", "LA", "P", "RGBA"):
        files += [encoded(image.convert(mode), "PNG")]
    palette = image.convert("P")
    files += [encoded(palette, "PNG", transparency=bytes([0, 128, 255])), encoded(palette, "GIF")]
    files += [encoded(image.copy(), kind) for kind in ("BMP", "PPM", "TIFF", "WEBP")]
    for number, data in enumerate(files):
        result = same(data)
        assert not isinstance(result, str), (number, result)
        assert result.shape == (40, 56, 3)
    # Losslessly kept, the first frame is the picture.
    assert np.array_equal(same(encoded(image, "PNG", **animated)), np.asarray(image))


def test_more_than_8_bits_a_channel_are_refused_alike():
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    for kind in ("PNG", "TIFF"):
        assert "more than 8 bits a channel" in same(encoded(deep, kind))


def cut_and_broken(data: bytes, source: np.random.Generator, kind: int) -> bytes:
    """The file, damaged in one of some ways."""
    bad, offset = bytearray(data), int(source.integers(2, len(data)))
    if kind == 0:
        del bad[offset:]
    elif kind == 1:
        del bad[offset : min(offset + 40, len(bad) - 2)]
    elif kind == 2:
        bad[offset] = 0xFF  # a marker that is none
    else:
        for spot in range(offset, min(offset + 9, len(bad) - 2)):
            bad[spot] = int(source.integers(256))
    return bytes(bad)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd EXIF blocks
def test_damaged_files_have_the_same_pixels_or_the_same_sentence():
    source = np.random.default_rng(0)
    refused = 0
    for number in range(120):
        image = photo(number, *source.integers(8, 60, 2).tolist())
        exif = tags(int(source.integers(1, 9)))
        kind = ("JPEG", "JPEG", "PNG", "WEBP")[number % 4]
        options = {"progressive": number % 8 == 1} if kind == "JPEG" else {}
        data = encoded(image, kind, exif=exif, **options)
        if kind == "JPEG" and number % 3:
            data = data[:20] + BLOCKS["ICC"] + data[20:]
        refused += isinstance(same(cut_and_broken(data, source, number // 4 % 4)), str)
    assert 60 < refused < 240


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header says that it has `side` x `side` pixels."""
    data = encoded(photo(0, 16, 16), kind)
    if kind == "JPEG":
        offset = data.index(b"\xff\xc0") + 5
        return data[:offset] + struct.pack(">HH", side, side) + data[offset + 4 :]
    if kind == "PNG":
        header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if kind == "GIF":
        return data[:6] + struct.pack("<HH", side, side) + data[10:]
    if kind == "PPM":
        return b"P6\n%d %d\n255\n" % (side, side) + data[-48:]
    return data[:18] + struct.pack("<ii", side, side) + data[26:]  # BMP


@each("kind", slow_but(["JPEG", "PNG", "GIF", "BMP", "PPM"], ["JPEG", "GIF"]))
@each("side", [60_000])
def test_a_file_that_claims_too_many_pixels_is_refused_when_it_is_read_first(kind, side):
    data = claiming(kind, side)
    message = same(data)
    assert (
        isinstance(message, str) and f"Image size ({side * side} pixels) exceeds limit" in message
    )
    assert fault_in(data, "it") == message


def test_a_draft_of_a_turned_picture_is_not_turned_again():
    plain = encoded(photo(7, 300, 400), "JPEG")
    turned = open_image(plain[:20] + BLOCKS["XMP"] + exif_segment(6) + plain[20:], "it")
    assert turned.pixels((40, 30)).shape == (400, 300, 3)
    assert open_image(plain, "it").pixels((40, 30)).shape[0] < 300


TOO_LITTLE_MEMORY = """
import io, resource
from PIL import Image
from raykd.data.sources.encoded_image import decode
from raykd.data.sources.encoded_image import open_image
from raykd.core.errors import WorkFailed

out = io.BytesIO()
Image.new("RGB", (9000, 9000)).save(out, "JPEG")
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
for look in (decode, lambda data, origin: open_image(data, origin).pixels()):
    try:
        look(out.getvalue(), "a.jpg")
    except WorkFailed as error:
        print(error)
"""


@pytest.mark.slow
def test_too_little_memory_for_an_image_is_a_sentence():
    words = [sys.executable, "-c", TOO_LITTLE_MEMORY]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    message = "a.jpg: not enough memory to decode its 9000 x 9000 pixels; set fewer scale.decoders"
    assert [line[: len(message)] for line in ended.stdout.splitlines()] == [message] * 2
