"""Tar shards in the WebDataset convention: what is found in them, and what is wrong with them."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import tarfile
from random import Random

import numpy as np
import pyarrow.fs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raykd.core.errors import DataError
from raykd.data.sources.tars import BLOCK, MOST_LABEL, expanded, tar_samples
from tests.each import each
from tests.tiers import slow_but


def encoded(seed, kind="png", side=8):
    """A random image's file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar(*members, form=tarfile.PAX_FORMAT):
    """The bytes of an archive with these (name, content) members; None is a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


def read(data, **options):
    return tar_samples(io.BytesIO(data), "shard-07.tar", **options)


PAIR = (("0001.png", encoded(1)), ("0001.cls", b"3"))


def test_the_bytes_at_an_offset_are_the_image():
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "ppm": "PPM"}
    images = {ending: encoded(i, kind, 9 + i) for i, (ending, kind) in enumerate(kinds.items())}
    members = []
    for number, (ending, content) in enumerate(images.items()):
        members += [(f"s{number}.{ending}", content), (f"s{number}.cls", str(number).encode())]
    data = tar(*members)
    shard = read(data)
    assert shard.keys == [f"s{number}" for number in range(5)]
    assert shard.labels == [0, 1, 2, 3, 4]
    assert shard.offsets.dtype == shard.lengths.dtype == np.int64
    spans = zip(shard.offsets, shard.lengths, strict=True)
    assert [data[start : start + size] for start, size in spans] == [*images.values()]


@each("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_every_format_of_tar_is_read(form):
    long = "a" * 90 + "/" + "b" * 90 + "/0001"
    image = encoded(0)
    data = tar((f"{long}.png", image), (f"{long}.cls", b" 12\n"), form=form)
    shard = read(data)
    assert shard.keys == [long]
    assert shard.labels == [12]
    assert data[shard.offsets[0] :][: shard.lengths[0]] == image


def test_a_key_ends_at_the_first_dot_of_the_files_name():
    image = encoded(0)
    data = tar(
        ("v1.0/a.png", image), ("v1.0/a.cls", b"0"),
        ("v1.0/b.png", image), ("v1.0/b.seg.png", image), ("v1.0/b.cls", b"1"),
        ("./c.PNG", image), ("./c.Cls", b"2"),
    )  # fmt: skip
    shard = read(data)
    assert shard.keys == ["v1.0/a", "v1.0/b", "c"]
    assert shard.labels == [0, 1, 2]


def test_members_of_a_sample_may_lie_anywhere():
    one, two = encoded(1), encoded(2)
    data = tar(("a.cls", b"1"), ("b.cls", b"2"), ("b.png", two), ("a.png", one))
    shard = read(data)
    assert shard.keys == ["a", "b"]
    assert shard.labels == [1, 2]
    assert data[shard.offsets[0] :][: shard.lengths[0]] == one


def test_what_is_no_file_of_a_sample_is_passed_over():
    data = tar(
        ("d", None), ("d.x", None), ("README", b"text"), ("._0001.png", b"?"),
        ("__MACOSX/0001.png", b"?"), (".git/0001.cls", b"9"), *PAIR, ("0001.caption", b"a seven"),
    )  # fmt: skip
    shard = read(data)
    assert shard.keys == ["0001"]
    assert shard.labels == [3]


def test_the_first_label_of_cls_json_and_txt_counts():
    for labels, label in [
        ({"cls": b"7"}, 7),
        ({"cls": b"-1"}, -1),
        ({"json": b'{"label": 4, "file": "x"}'}, 4),
        ({"json": b'{"label": "cat"}'}, "cat"),
        ({"txt": "Katze \u00e4\n".encode()}, "Katze \u00e4"),
        ({"txt": b"cat", "json": b'{"label": 5}', "cls": b"6"}, 6),
        ({"txt": b"cat", "json": b'{"label": 5}'}, 5),
        ({"txt": b"cat", "json": b'{"width": 8}'}, "cat"),
        ({"txt": b"cat", "json": b"[1]"}, "cat"),
    ]:
        members = [
            ("0001.png", encoded(0)),
            *((f"0001.{end}", text) for end, text in labels.items()),
        ]
        assert read(tar(*members)).labels == [label]


@each(
    ("members", "message"),
    [
        ((("a.bmp", b"x"), ("a.tif", b"y"), ("a.cls", b"1")), "found 2 among bmp, tif, cls"),
        ((("a.png", b"x"),), "sample 'a': no label; expected a member .cls"),
        ((("a.png", b"x"), ("a.json", b"{}")), "sample 'a': no label"),
        ((("a.png", b"x"), ("a.cls", b"cat")), "'a', .cls: expected the number of a class"),
        ((("a.png", b"x"), ("a.json", b"{")), "'a', .json: cannot be read as JSON"),
        ((("a.png", b"x"), ("a.json", b'{"label": true}')), 'as "label", found True'),
        ((("a.png", b"x"), ("a.txt", b"\xff")), "'a', .txt: cannot be read as text"),
        ((("a.png", b"x"), ("a.cls", b"1"), ("a.CLS", b"2")), "'a.CLS' is there twice"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(members, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tar(*PAIR, *members))
    assert str(caught.value).startswith("shard-07.tar")


@pytest.mark.parametrize(
    ("pack", "packer"),
    slow_but(
        [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")],
        [(gzip.compress, "gzip")],
    ),
)
def test_a_compressed_archive_is_refused(pack, packer):
    with pytest.raises(DataError, match=rf"shard-07.tar: is compressed \({packer}\)"):
        read(pack(tar(*PAIR)))


def test_an_archive_that_is_cut_short_anywhere_is_noticed():
    data = tar(*PAIR, ("0002.png", encoded(2)), ("0002.cls", b"1"), form=tarfile.USTAR_FORMAT)
    content = len(data.rstrip(b"\0"))
    end = -(-content // 512) * 512  # where the first block of zeros begins
    for length in [*range(0, end, 37), end - 1, end, end + 511]:
        with pytest.raises(DataError, match=r"shard-07\.tar: (cut short|cannot be read)"):
            read(data[:length])
    for length in (end + 512, end + 1024, len(data)):
        assert read(data[:length]).labels == [3, 1]


def test_a_cut_within_an_image_names_it():
    data = tar(("0001.cls", b"3"), ("0001.png", encoded(1, side=64)), form=tarfile.USTAR_FORMAT)
    with pytest.raises(
        DataError, match=r"cut short within '0001.png': its .* bytes begin at 1,536"
    ):
        read(data[:5000])


def test_damage_and_a_second_archive_are_not_taken_for_the_end():
    data = bytearray(tar(*PAIR, ("0002.png", encoded(2)), ("0002.cls", b"1")))
    twice = bytes(data) + bytes(data)
    with pytest.raises(DataError, match="another archive begins after the end of the first"):
        read(twice)
    second = data.index(b"0002.png")
    data[second] ^= 1  # its header's checksum does not fit any more
    with pytest.raises(DataError, match=f"damaged at byte {second:,}"):
        read(bytes(data))
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        read(b"no tar at all" * 100)


def test_an_archive_without_samples_has_none():
    shard = read(tar())
    assert shard.labels == shard.keys == []
    assert shard.offsets.shape == shard.lengths.shape == (0,)


class Counting(io.BytesIO):
    """A file that counts what is asked of it."""

    requested = calls = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.requested, self.calls = self.requested + count, self.calls + 1
        return count


def test_json_that_cannot_be_read_names_its_sample():
    for text in (b"[" * 100_000, b'{"label":' * 100_000, b'{"label": 1' + b"0" * 5000 + b"}"):
        with pytest.raises(DataError, match=r"^shard-07\.tar, sample 'a', \.json: cannot be") as e:
            read(tar(*PAIR, ("a.png", b"x"), ("a.json", text)))
        assert len(str(e.value)) < 300


@each("label", ["[1]", "false"])
def test_a_label_of_another_type_names_its_sample(label):
    text = b'{"label": %s}' % label.encode()
    with pytest.raises(DataError, match=r"sample 'a', \.json: expected a number or a word"):
        read(tar(*PAIR, ("a.png", b"x"), ("a.json", text)))
    assert read(tar(*PAIR, ("a.png", b"x"), ("a.json", b'{"label": null}'), ("a.cls", b"2"))).labels


def test_a_sample_without_an_image_is_kept_for_its_reader_to_refuse_or_skip():
    shard = read(tar(("a.cls", b"1"), *PAIR, ("b.xyz", b"x"), ("b.txt", b"cat")))
    assert shard.keys == ["a", "0001", "b"] and shard.labels == [1, 3, "cat"]
    assert shard.lengths.tolist()[::2] == [0, 0] and [*shard.lacking] == [0, 2]
    assert str(shard.lacking[2]).startswith("shard-07.tar, sample 'b': expected an image (jpg, ")
    assert "found none among txt, xyz" in str(shard.lacking[2])


def test_files_of_no_sample_are_counted():
    data = tar(
        ("README.md", b"text"), ("meta.json", b'{"rows": 5}'), *PAIR, ("LICENSE", b"text"),
        ("0001.seg.png", b"mask"), ("dataset.json", b"{}"),
    )  # fmt: skip
    shard = read(data)
    assert shard.keys == ["0001"] and not shard.lacking
    assert shard.unread == {"no suffix": 1, ".md": 1, ".json": 2}


@pytest.mark.parametrize("ending", ["TIFF"])
def test_images_of_other_kinds_are_taken_where_there_is_no_usual_one(ending):
    data = tar((f"a.{ending}", b"four"), ("a.cls", b"0"), ("b.tif", b"depth"), ("b.cls", b"1"))
    assert read(data).lengths.tolist() == [4, 5]
    data = tar((f"a.{ending}", b"four"), ("a.jpg", b"photo"), ("a.cls", b"0"))
    assert read(data).lengths.tolist() == [5]


def test_a_label_of_many_megabytes_is_refused():
    with pytest.raises(DataError, match=r"'a\.txt' has .* bytes, expected a label of"):
        read(tar(("a.png", b"x"), ("a.txt", bytes(MOST_LABEL + 1))))


def test_damage_anywhere_ends_in_a_sentence_or_nowhere():
    data, rng = tar(*PAIR, ("b" * 120 + ".png", b"x"), ("b" * 120 + ".json", b"{}")), Random(3)
    for _ in range(200):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            altered[rng.randrange(len(data))] = rng.choice([0, 32, 48, 55, 128, 255])
        with contextlib.suppress(DataError):
            read(bytes(altered))


def test_images_are_not_read():
    samples = 40
    members = []
    for number in range(samples):
        members += [(f"{number:04d}.png", bytes(200_000)), (f"{number:04d}.cls", b"1")]
    data = tar(*members)
    file = Counting(data)
    assert len(tar_samples(file, "big").keys) == samples
    assert file.requested < 3 * BLOCK * samples < len(data) / 5
    file = Counting(data)
    tar_samples(file, "big", block=1 << 20)
    assert file.calls < samples  # of some samples at a time
    assert not file.closed


def test_open_files_and_arrows_are_read_alike(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(tar(*PAIR, ("0002.jpg", encoded(2, "JPEG")), ("0002.cls", b"1")))
    with path.open("rb") as file:
        mine = tar_samples(file, str(path))
        assert file.seek(0) == 0  # still open
    with pyarrow.fs.LocalFileSystem().open_input_file(str(path)) as file:
        theirs = tar_samples(file, str(path))
        image = file.read_at(int(theirs.lengths[1]), int(theirs.offsets[1]))
    assert image == encoded(2, "JPEG")
    assert mine.keys == theirs.keys
    assert mine.labels == theirs.labels
    for one, other in zip(mine[:2], theirs[:2], strict=True):
        assert np.array_equal(one, other)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=1500), st.integers(0, 9)), max_size=6), st.booleans())
def test_whatever_is_packed_is_found(images, json_labels):
    members = []
    for number, (content, label) in enumerate(images):
        text = json.dumps({"label": label}) if json_labels else str(label)
        members += [(f"x/{number}.jpg", content)]
        members += [(f"x/{number}.{'json' if json_labels else 'cls'}", text.encode())]
    data = tar(*members)
    shard = read(data)
    spans = zip(shard.offsets, shard.lengths, strict=True)
    assert [data[start : start + size] for start, size in spans] == [image for image, _ in images]
    assert shard.labels == [label for _, label in images]


def test_braces_stand_for_names():
    for pattern, names in [
        ("one.tar", ["one.tar"]),
        ("t-{000..002}.tar", ["t-000.tar", "t-001.tar", "t-002.tar"]),
        ("t-{8..11}", ["t-8", "t-9", "t-10", "t-11"]),
        ("t-{08..11}", ["t-08", "t-09", "t-10", "t-11"]),
        ("{0..1}", ["0", "1"]),
        ("{7..7}", ["7"]),
        ("s3://b/{x,y}-{0..1}.tar", [f"s3://b/{end}.tar" for end in ("x-0", "x-1", "y-0", "y-1")]),
        ("a{,b}", ["a", "ab"]),
    ]:
        assert expanded(pattern) == names


def test_imagenets_pattern_has_all_its_shards():
    names = expanded("imagenet-train-{000000..000146}.tar")
    assert len(names) == 147
    assert names[-1] == "imagenet-train-000146.tar"


@each(
    ("pattern", "message"),
    [
        ("a{0..1", "not closed"),
        ("a{0..{1,2}}", "within another"),
        ("{3..1}", "does not count up"),
        ("{a..c}", "{a..c} is neither"),
        ("{0..99999999}", "more than 1,000,000 numbers"),
        ("{0..9999}{0..9999}", "stands for 100,000,000 names"),
    ],
)
def test_braces_that_say_nothing_are_refused(pattern, message):
    with pytest.raises(DataError, match=message):
        expanded(pattern)
