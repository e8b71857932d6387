"""Packs: the same images as before, whoever made them, and however often that was stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from raykd.core.errors import CacheCorrupt, DataError, NoRoom
from raykd.data.dataset import open_images, read
from raykd.data.image_index import content_hash
from raykd.data.packing import into_store
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES, pack_format
from raykd.data.sources.files import Files
from raykd.data.sources.folders import read_folder
from raykd.data.sources.pack_format import MARKER, PLAN, is_pack, join_names, read_pack
from raykd.data.sources.pixels import png
from raykd.data.sources.splits import row_ranges
from raykd.storage import arrow
from raykd.storage.store import Store
from tests.data.files import encoded, picture, put
from tests.data.packs import MB, call, digest, images, packed, packing, quiet, same
from tests.data.photos import photos
from tests.each import each


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is not packed


def test_a_class_without_images_is_refused_as_in_memory(root):
    (root / "train" / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: the class folder holds no image"):
        read_folder(str(root))
    with pytest.raises(DataError, match="elsewhere: there is no such folder"):
        read_folder(str(root.parent / "elsewhere"))


# What a pack is


def test_a_pack_has_the_images_of_its_folder_and_their_digest(store, root, tmp_path):
    made = packed(root, tmp_path / "pack")
    assert len(made) > 5 and not any(one.adopted for one in made)
    dataset = read_pack(str(tmp_path / "pack"))
    same(dataset, read_folder(str(root)))
    assert dataset.digest == digest(store, read_folder(str(root)))
    assert not (tmp_path / "pack" / PLAN).exists()


def test_a_pack_is_streamed_as_its_folder_is_and_nothing_is_read_again(store, root, tmp_path):
    packed(root, tmp_path / "pack")
    stream = Stream(size=24, resize=28)
    folder = read(store, Data(name="folder", stream=stream), root)
    # As long as no image is looked at, none of these bytes is missed.
    for path in (tmp_path / "pack").glob("train-0*.arrow"):
        path.write_bytes(bytes(path.stat().st_size))
    for name in ("folder", "table"):
        again = Store(tmp_path / name)
        data = read(again, Data(name=name, stream=stream), tmp_path / "pack")
        assert (data.digest, data.classes) == (folder.digest, 3)
        train, test = open_images(again, data)
        assert (len(train), len(test)) == (24, 6)


def test_where_one_of_two_places_is_gone_the_other_is_read(store, root, tmp_path):
    packed(root, tmp_path / "pack")
    stream = Stream(size=24, resize=28)
    for location in (root, tmp_path / "pack", root):
        data = read(store, Data(name="folder", stream=stream), location)
        train, _ = open_images(store, data)
        assert train.ranges.files.root == str(location)


def test_a_pack_is_a_table_like_any_other(root, tmp_path):
    packed(root, tmp_path / "pack")
    dataset, folder = SOURCES["table"](tmp_path / "pack"), SOURCES["folder"](root)
    assert dataset.names == folder.names
    for split in ("train", "test"):
        assert [*dataset.splits[split].images] == [*folder.splits[split].images]
        assert np.array_equal(dataset.splits[split].labels, folder.splits[split].labels)
    shards = sorted((tmp_path / "pack").glob("train-*-*.arrow"))
    tables = [pa.ipc.open_file(str(path)).read_all() for path in shards]
    table = pa.concat_tables(tables)
    assert table.column_names == ["image", "label"]
    assert table["image"].to_pylist() == [*folder.splits["train"].images]


def test_class_names_may_have_commas(tmp_path):
    for name in ("a, b", "[c", "d"):
        put(tmp_path / "photos" / name / "1.png")
    packed(tmp_path / "photos", tmp_path / "pack")
    assert SOURCES["table"](tmp_path / "pack").names == ("[c", "a, b", "d")
    assert read_pack(str(tmp_path / "pack")).names == ("[c", "a, b", "d")
    assert join_names(["no", "yes"]) == "no,yes"


def test_names_that_are_not_utf_8_are_packed_as_they_are(store, tmp_path):
    odd = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", b"a\x1b[1m")]
    for number, name in enumerate(odd):
        path = tmp_path / os.fsdecode(b"fotos \xe9") / name / os.fsdecode(b"\xe9.png")
        put(path, encoded(picture(number)))
    source, target = path.parents[1], tmp_path / os.fsdecode(b"pack \xe9")
    call(source, target)
    dataset = read_pack(str(target))
    same(dataset, read_folder(str(source)))
    assert dataset.digest == digest(store, read_folder(str(source)))
    assert SOURCES["table"](target).names == dataset.names


def test_cuts_cover_every_row_once_and_shards_are_as_large_as_asked():
    lengths = np.random.default_rng(0).integers(1, 1000, 500)
    parts = row_ranges(lengths, 10_000)
    assert [row for start, stop in parts for row in range(start, stop)] == [*range(500)]
    sizes = [int(lengths[start:stop].sum()) for start, stop in parts]
    assert max(sizes) < 11_000 and min(sizes[:-1]) > 9_000
    assert row_ranges(np.array([5, 5, 5]), 1) == [(0, 1), (1, 2), (2, 3)]
    assert row_ranges(np.array([]), 1) == []


# Who makes it, and how often they are stopped


def test_a_shard_is_the_same_whoever_makes_it(root, tmp_path):
    packed(root, tmp_path / "a")
    work = packing(root, tmp_path / "b")
    work.begin()
    # Each in a process of its own, that knows no other.
    work.finish([packing(root, tmp_path / "b").make(part) for part in reversed(work.parts)])
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
        assert first == second


def test_what_was_made_is_kept_and_only_the_rest_is_made(root, tmp_path):
    target = tmp_path / "pack"
    work = packing(root, target)
    candidates = work.begin()
    for part in work.parts[:3]:
        work.make(part, candidates[part])
    with pytest.raises(DataError, match="a pack that is not finished; run the `raykd pack` again"):
        is_pack(Files.at(target))
    with pytest.raises(DataError, match="not finished"):
        SOURCES["table"](target)
    before = {path: path.stat().st_mtime_ns for path in target.glob("*.arrow")}
    made = packed(root, target)
    assert [one.adopted for one in made] == [True] * 3 + [False] * (len(made) - 3)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    same(read_pack(str(target)), read_folder(str(root)))


@pytest.mark.slow
def test_a_killed_pack_is_gone_on_with(store, root, tmp_path):
    for number in range(50):
        put(root / "train/class0" / f"{number + 1000}.png", png(np.asarray(picture(number))))
    target = tmp_path / "pack"
    script = "from raykd.cli import main; main()"
    words = ["pack", str(root), str(target), "--shard-mb", "0.001", "--decode"]
    process = subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.DEVNULL)
    while len([*target.glob("*.arrow")]) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (target / MARKER).exists()
    result = json.loads(call(*words[1:], "--json").stdout)
    assert 0 < result["made"] < result["shards"]
    assert result["digest"] == digest(store, read_folder(str(root)))
    same(read_pack(str(target)), read_folder(str(root)))
    assert "which were all there, and are whole" in call(*words[1:]).stderr


@pytest.mark.parametrize("damage", ["altered", "removed"])
def test_a_damaged_shard_is_made_again(root, tmp_path, damage):
    target = tmp_path / "pack"
    packed(root, target)
    before = names(target)
    victim = target / before[-5]
    data = victim.read_bytes()
    middle = len(data) // 2
    altered = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    new = {"altered": altered, "cut": data[:middle], "emptied": b""}
    victim.unlink() if damage == "removed" else victim.write_bytes(new[damage])
    if damage != "altered":
        with pytest.raises(CacheCorrupt, match=f"{victim.name}: expected {len(data)} bytes"):
            read_pack(str(target))
    made = packed(root, target)
    assert [one.shard.name for one in made if not one.adopted] == [victim.name]
    assert victim.read_bytes() == data and names(target) == before


def test_an_altered_index_is_named(root, tmp_path):
    packed(root, tmp_path / "pack")
    path = tmp_path / "pack" / "train-index.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(CacheCorrupt, match=r"train-index\.arrow: it was altered; run the"):
        read_pack(str(tmp_path / "pack"))
    marker = tmp_path / "pack" / MARKER
    text = marker.read_text()
    offset = text.index('"digest": "') + 12
    marker.write_text(text[:offset] + ("0" if text[offset] != "0" else "1") + text[offset + 1 :])
    with pytest.raises(CacheCorrupt, match=r"pack\.json: it was altered; run the"):
        read_pack(str(tmp_path / "pack"))
    (tmp_path / "pack" / MARKER).write_text("{")
    with pytest.raises(CacheCorrupt, match=r"pack\.json: cannot be read"):
        read_pack(str(tmp_path / "pack"))
    (tmp_path / "pack" / MARKER).write_text('{"format": 99}')
    with pytest.raises(CacheCorrupt, match="format 99, this raykd reads 1"):
        read_pack(str(tmp_path / "pack"))


@each(
    "facts",
    [
        [], {}, {"format": 1},
        {"format": 1, "digest": "0", "classes": ["a"], "splits": []},
        {"format": 1, "digest": "0", "classes": [1], "splits": {"train": {}}},
        {"format": 1, "digest": "0", "classes": ["a"], "splits": {"train": {"shards": {}}}},
        {"format": 1, "digest": "0", "classes": ["a"], "splits": {"../x": {}, "train": {}}},
    ],
)  # fmt: skip
def test_a_marker_of_another_shape_is_named(tmp_path, facts):
    put(tmp_path / "pack" / MARKER, json.dumps(facts))
    with pytest.raises(CacheCorrupt, match=r"pack\.json: .*; run the `raykd pack` again"):
        read_pack(str(tmp_path / "pack"))


@pytest.mark.parametrize("damage", ["flipped"])
def test_a_pack_that_is_read_into_memory_is_checked_shard_by_shard(store, root, tmp_path, damage):
    packed(root, tmp_path / "pack")
    victim = sorted((tmp_path / "pack").glob("train-0*.arrow"))[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.unlink() if damage == "missing" else victim.write_bytes(data)
    with pytest.raises(CacheCorrupt, match=f"{victim.name}: (it was altered|expected .* bytes)"):
        read(store, Data(name="table", resize=8), tmp_path / "pack")


# What is refused


def test_a_folder_of_something_else_is_refused(root, tmp_path):
    put(tmp_path / "full" / "letter.txt", "text")
    with pytest.raises(DataError, match="the folder is not empty, and holds no pack"):
        packing(root, tmp_path / "full").begin()
    target = tmp_path / "pack"
    packing(root, target).begin()
    with pytest.raises(DataError, match=r"shard_mb was 0\.004, now 1"):
        packing(root, target, shard_mb=1.0).begin()
    with pytest.raises(DataError, match="decode was False, now True"):
        packing(root, target, decode=True).begin()
    packed(root, target)
    put(root / "train/class1/000.jpg", encoded(picture(7), "JPEG"))
    with pytest.raises(DataError, match=f"{target}: holds a pack of {root} .*files have changed"):
        packing(root, target).begin()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path):
    put(tmp_path / "photos" / "b" / "1.jpg")
    huge = put(tmp_path / "photos" / "a" / "1.jpg")
    with huge.open("r+b") as file:
        file.truncate(1 << 43)  # a hole, which takes no room
    with pytest.raises(NoRoom, match=r"the pack needs 8796093 MB more, the disk has"):
        packing(tmp_path / "photos", tmp_path / "pack").begin()
    assert not (tmp_path / "pack").exists()


def test_bad_images_are_named_or_left_out(store, root, tmp_path):
    put(root / "train/class1/9.jpg", "no image")
    put(root / "test/class2/9.jpg", b"")
    target = tmp_path / "pack"
    with pytest.raises(DataError, match=r"^2 images cannot be used:") as caught:
        packed(root, target)
    for line in ("test/class2/9.jpg: the file is empty", "class1/9.jpg: cannot be decoded as"):
        assert line in str(caught.value)
    assert "leave them out" in str(caught.value)
    made = packed(root, target, skip_bad=True)
    assert sum(one.skipped for one in made) == 2
    assert all(one.adopted for one in made)  # what was made before is kept
    dataset = read_pack(str(target))
    assert dataset.digest == digest(store, read_folder(str(root)), skip_bad=True)
    assert len(dataset.splits["train"][1]) == 24
    result = call(root, target, "--shard-mb", MB, "--on-bad-image", "skip")
    assert "2 files that are no images were left out" in result.stderr
    assert (
        "test/class2/9.jpg: the file is empty"
        in call(root, target, "--shard-mb", MB, code=3).stderr
    )


def test_a_refused_pack_is_begun_anew_once_its_files_were_mended(root, tmp_path):
    bad, target = put(root / "train/class1/9.jpg", "no image"), tmp_path / "pack"
    with pytest.raises(DataError, match=r"class1/9\.jpg: cannot be decoded"):
        packed(root, target)
    assert (target / PLAN).exists() and len(names(target)) > 1
    put(bad, encoded(picture(9), "JPEG"))
    packed(root, target)
    same(read_pack(str(target)), read_folder(str(root)))
    assert len(names(target)) == len([*target.glob("*-*-*.arrow")]) + 9


def test_a_truncated_image_is_found_by_decoding_it(root, tmp_path):
    path = root / "train/class1/003.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    packed(root, tmp_path / "trusting")
    message = r"class1/003\.jpg: cannot be decoded as an image \(.*truncated"
    with pytest.raises(DataError, match=message):
        packed(root, tmp_path / "careful", decode=True)
    made = packed(root, tmp_path / "skipping", decode=True, skip_bad=True)
    assert [len(one.bad) for one in made if one.bad] == [1]


def test_a_class_of_which_nothing_is_left_is_refused(root, tmp_path):
    put(root / "train/class9/1.jpg", "no image")
    with pytest.raises(DataError, match=r"\('class9'\) has no training image that can"):
        packed(root, tmp_path / "pack", skip_bad=True)


# What lies in no files


@pytest.mark.slow
def test_pixels_are_packed_as_png_files(store):
    dataset = into_store(store, "digits", None, quiet)
    digits = SOURCES["digits"](None).splits["train"]
    ranges, labels = dataset.splits["train"]
    assert np.array_equal(labels, digits.labels)
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in ranges]
    assert np.array_equal(np.stack(decoded), digits.images.pixels)
    heard = []
    again = into_store(store, "digits", None, heard.append)
    assert again.digest == dataset.digest and not heard
    data = read(store, Data(name="digits", stream=Stream(size=8, resize=8)), None)
    assert data.digest == dataset.digest


@each("shape", [(8, 8), (300, 201, 3)])
def test_a_png_file_is_what_pillow_reads(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    image.load()  # which checks the sums
    assert np.array_equal(np.asarray(image), pixels)


def test_a_source_of_whole_files_is_streamed_from_where_it_lies(store, tmp_path):
    for split in ("train", "valid", "test"):
        for number, name in enumerate(("airplane", "automobile", "bird")):
            put(tmp_path / "cinic" / split / name / "1.png", encoded(picture(number)))
    for name in ("cat", "deer", "dog", "frog", "horse", "ship", "truck"):
        for split in ("train", "valid", "test"):
            put(tmp_path / "cinic" / split / name / "1.png")
    dataset = into_store(store, "cinic10", str(tmp_path / "cinic"), quiet)
    source = SOURCES["cinic10"](tmp_path / "cinic")
    assert dataset.names == source.names
    assert images(dataset) == [*source.splits["train"].images]
    assert dataset.splits["train"][0].origin(0) == str(tmp_path / "cinic/train/airplane/1.png")


# The command


def test_the_command_says_what_it_does_and_what_to_write(store, root, tmp_path):
    target = tmp_path / "pack"
    result = call(root, target, "--shard-mb", MB)
    assert "30 images of 3 classes" in result.stderr and "images/s" in result.stderr
    data, run = result.stdout.splitlines()
    assert data == f'data: {{path: "{target}"}}'
    assert run == "run: {data: {name: table, stream: {}}}"
    value = json.loads(call(root, target, "--shard-mb", MB, "--json").stdout)
    assert value["images"] == {"train": 24, "test": 6} and value["made"] == 0
    assert value["digest"] == digest(store, read_folder(str(root)))
    bad = call(root, root / "train", code=3)
    assert "the folder is not empty" in bad.stderr
    assert "x: there is no such file or folder" in call(tmp_path / "x", target, code=3).stderr
    (tmp_path / "y").mkdir()
    assert "found no images, tables or tar shards" in call(tmp_path / "y", target, code=3).stderr


@pytest.mark.slow
def test_a_pack_can_be_packed_again_and_a_dataset_without_files_too(root, tmp_path):
    call(root, tmp_path / "a", "--shard-mb", MB)
    call(tmp_path / "a", tmp_path / "b", "--shard-mb", 1)
    a, b = (read_pack(str(tmp_path / name)) for name in "ab")
    same(a, b)
    assert a.digest == b.digest and len(b.splits["train"][0].names) == 1
    call("-", tmp_path / "digits", "--name", "digits")
    assert len(read_pack(str(tmp_path / "digits")).splits["train"][1]) == 1797


def test_hashes_of_other_images_are_refused_and_a_pack_without_any_is_read(root, tmp_path):
    packed(root, tmp_path / "pack")
    dataset = read_pack(str(tmp_path / "pack"))
    hashes = [content_hash(image) for image in images(dataset)]
    assert dataset.contents["train"].tobytes() == b"".join(hashes)
    marker = tmp_path / "pack" / MARKER
    facts = pack_format.read_json(Files.at(tmp_path / "pack"), MARKER)
    train = facts["splits"]["train"]
    data = arrow.pack({"contents": torch.zeros(2, 16, dtype=torch.uint8)})
    (tmp_path / "pack/train-contents.arrow").write_bytes(data)
    train["contents"] = {"train-contents.arrow": arrow.checksum(data)}
    marker.write_text(json.dumps(pack_format.sealed(facts)))
    with pytest.raises(CacheCorrupt, match="a hash of each image"):
        read_pack(str(tmp_path / "pack"))
    del train["contents"]  # as earlier versions wrote it
    marker.write_text(json.dumps(pack_format.sealed(facts)))
    assert read_pack(str(tmp_path / "pack")).contents == {}
