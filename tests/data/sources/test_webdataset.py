"""Tar shards as a dataset: their splits, classes and images, streamed or read into memory."""

import json

import numpy as np
import pytest

from raykd.core.errors import DataError
from raykd.data.dataset import open_images, read
from raykd.data.packing import source_of
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES
from raykd.data.sources.folders import read_folder
from raykd.data.sources.tars import read_webdataset
from tests.data.files import picture, put
from tests.data.packs import IMAGES, digest, put_tar, samples, shards
from tests.each import each

LABELS = {
    "cls": (lambda row: {"cls": f"{row % 3}\n"}, ("0", "1", "2")),
    "txt": (lambda row: {"txt": ["owl", "cat", "dog"][row % 3]}, ("cat", "dog", "owl")),
    "json": (lambda row: {"json": json.dumps({"width": 8, "label": row % 3})}, ("0", "1", "2")),
}


@each("how", LABELS)
def test_a_label_is_a_number_or_the_name_of_a_class(tmp_path, how):
    label, names = LABELS[how]
    path = put_tar(tmp_path / "a.tar", samples(range(6), label))
    dataset = read_webdataset(str(path))
    assert dataset.names == names and list(dataset.splits) == ["train"]
    ranges, labels = dataset.splits["train"]
    assert [*ranges] == IMAGES[:6]
    titles = ["owl", "cat", "dog"] if how == "txt" else ["0", "1", "2"]
    assert [dataset.names[label] for label in labels] == [titles[row % 3] for row in range(6)]
    assert ranges.origin(0) == f"{path}, byte 512"


@each(
    ("name", "text"),
    [
        ("classes.txt", "owl\ncat\ndog\n"),
        ("classes.json", '["owl", "cat", "dog"]'),
    ],
)
def test_names_of_classes_may_lie_beside_the_shards(tmp_path, name, text):
    shards(tmp_path)
    put(tmp_path / name, text)
    assert read_webdataset(str(tmp_path)).names == ("owl", "cat", "dog")


@each("text", ['{"3": "owl"}', "{"])
def test_names_that_are_none_are_refused(tmp_path, text):
    shards(tmp_path)
    put(tmp_path / "classes.json", text)
    with pytest.raises(DataError, match=r"classes\.json: (expected a list|cannot be read)"):
        read_webdataset(str(tmp_path))


def test_folders_and_patterns_are_the_same_shards(tmp_path):
    root = shards(tmp_path / "shards")
    whole = read_webdataset(str(root))
    pattern = read_webdataset(f"{root}/{{train,val}}-000.tar")
    assert [len(whole.splits[split][1]) for split in ("train", "test")] == [9, 3]
    assert [len(pattern.splits[split][1]) for split in ("train", "test")] == [5, 3]
    assert [*whole.splits["train"][0]] == IMAGES[:9]
    counted = read_webdataset(f"{root}/train-{{000..001}}.tar")
    assert [*counted.splits["train"][0]] == IMAGES[:9]


@each(
    ("pattern", "says"),
    [
        ("train-{000..002}.tar", r"train-002\.tar: there is no such file"),
        ("val-{000..000}.tar", "none of its 1 tar files is a training split"),
        ("nothing", "there is no such file or folder"),
    ],
)
def test_shards_that_are_not_there_are_said(tmp_path, pattern, says):
    with pytest.raises(DataError, match=says):
        SOURCES["webdataset"](f"{shards(tmp_path)}/{pattern}")


def test_labels_beyond_the_classes_are_refused(tmp_path):
    put(tmp_path / "classes.txt", "owl\ncat\n")
    with pytest.raises(DataError, match=r"train-000\.tar, byte \d+: label 2 is out of range"):
        read_webdataset(str(shards(tmp_path)))


def test_shards_of_a_folder_have_its_digest(store, tmp_path):
    members: dict[str, bytes | str] = {}
    for row in sorted(range(12), key=lambda row: row % 3):
        put(tmp_path / "folder/train" / f"{row % 3}" / f"{row:04d}.png", IMAGES[row])
        members |= samples([row])
    path = put_tar(tmp_path / "train.tar", members)
    datasets = [read_folder(str(tmp_path / "folder")), read_webdataset(str(path))]
    first, second = (digest(store, one) for one in datasets)
    assert first == second


def test_shards_are_streamed_or_read_into_memory(store, tmp_path):
    root = shards(tmp_path / "shards")
    data = read(store, Data(name="webdataset", stream=Stream(size=4, resize=5)), root)
    train, test = open_images(store, data)
    assert [*train.ranges] == IMAGES[:9] and [*test.ranges] == IMAGES[9:12]
    memory = read(store, Data(name="webdataset"), root)
    decoded, _ = open_images(store, memory)
    expected = [np.asarray(picture(number)) for number in range(9)]
    assert np.array_equal(decoded.pixels.numpy(), np.stack(expected))
    pattern = root / "train-{000..001}.tar"
    assert len(SOURCES["webdataset"](pattern).splits["train"].labels) == 9


@pytest.mark.parametrize("name", ["train.TGZ"])
def test_compressed_shards_are_refused_with_what_to_do(tmp_path, name):
    path = put(tmp_path / "shards" / name, b"compressed")
    for location in (path, path.parent):
        assert source_of(str(location)) == "webdataset"
        with pytest.raises(DataError, match=rf"{name}: is compressed, .* unpack it to a plain"):
            read_webdataset(str(location))


def test_what_is_no_shard_is_counted(tmp_path):
    shards(tmp_path).joinpath("train-001.tar").rename(tmp_path / "train-001.TAR")
    for name in ("old.tar.gz", "README.md", "more/notes.txt", "index.idx"):
        put(tmp_path / name, b"x")
    put_tar(tmp_path / "test.tar", {**samples(range(3)), "about.yaml": "x"})
    dataset = read_webdataset(str(tmp_path))
    assert len(dataset.splits["train"][1]) == 9
    assert dataset.about.unread == {
        ".gz": 1, ".md": 1, ".txt": 1, ".idx": 1, ".tar": 1, ".yaml": 1,
    }  # fmt: skip


def test_samples_without_an_image_are_said_all_at_once_or_left_out(store, tmp_path):
    members = {**samples(range(9)), **samples(range(9, 12)), "lost.cls": "1", "gone.cls": "2"}
    for row in (2, 5):
        del members[f"{row:04d}.png"]
    path = put_tar(tmp_path / "train.tar", members)
    data = Data(name="webdataset", stream=Stream(size=4, resize=5))
    with pytest.raises(DataError, match=r"^4 images cannot be used") as caught:
        read(store, data, path)
    for key in ("0002", "0005", "lost", "gone"):
        assert f"{path}, sample {key!r}: expected an image" in str(caught.value)
    train, test = open_images(store, read(store, data, path, skip_bad=True))
    assert len(train) + len(test) == 10
    kept = sorted([*train.ranges, *test.ranges])
    assert kept == sorted(IMAGES[row] for row in range(12) if row not in (2, 5))
