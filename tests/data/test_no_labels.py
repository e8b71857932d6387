"""Images without labels: what is read depends on no label, and none is needed."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raykd.core.errors import DataError
from raykd.core.record import canonical
from raykd.data.dataset import open_images, open_split, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data, ResolvedData, Stream
from raykd.data.sources import SOURCES
from raykd.data.sources.files import Files, join_path
from raykd.data.sources.pack_format import read_pack
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.storage.store import Store
from tests.data.files import encoded, picture, put
from tests.data.packs import (
    IMAGES,
    ROWS,
    call,
    digest,
    images,
    put_table,
    put_tar,
    samples,
    table,
)
from tests.each import each

LABELS = [0, 0, 0, 1, 1, 2] * 4
PERMUTED = LABELS[5:] + LABELS[:5]


def tree(root: Path, labels=None, names=("cat", "dog", "owl")) -> Path:
    """The images as files, in the class folders that labels name, or all in one folder."""
    for row, image in enumerate(IMAGES):
        folder = "" if labels is None else f"{names[labels[row]]}/"
        put(root / f"{folder}{row:03d}.png", image)
    return root


def shard(root: Path, labels=None) -> Path:
    members = samples(range(ROWS), lambda row: {"cls": str(labels[row])} if labels else {})
    return put_tar(root / "all.tar", members)


def parquet(root: Path, labels=None) -> Path:
    content = table(labels=labels or LABELS[:ROWS])
    return put_table(root / "all.parquet", content if labels else content.select(["image"]))


WAYS = {"folder": tree, "webdataset": shard, "table": parquet}


def unlabelled(name: str, *, stream: bool = False, **fields) -> Data:
    return Data(
        name=name, labels="none", stream=Stream(size=6) if stream else None, seed=3, **fields
    )


def inputs(store: Store, data: Data, path: Path) -> tuple[ResolvedData, list[torch.Tensor]]:
    """The data as read, and the pixels and targets of all splits as a view shows them."""
    read_data = read(store, data, path)
    shown = []
    for split in ("train", "validation", "test"):
        part = open_split(store, read_data, split)
        views = Views(part, read_data)
        batch = views.batch(torch.arange(len(part)), 3)
        shown += [batch.pixels, batch.targets, batch.ids]
    return read_data, shown


@each("stream", [False, True], ids=["memory", "stream"])
@each("kind", [*WAYS])
def test_permuted_labels_change_no_input(tmp_path, kind, stream):
    augment = Augment(mix=Mix(kind="cutmix"))
    data = unlabelled(kind, stream=stream, augment=augment, validation=0.2, limit=9)
    shown = []
    for number, labels in enumerate((None, LABELS[:ROWS], PERMUTED[:ROWS])):
        path = WAYS[kind](tmp_path / str(number), labels)
        root = path if kind == "folder" else path.parent
        shown.append(inputs(Store(tmp_path / f"store{number}"), data, root))
    for read_data, tensors in shown[1:]:
        assert read_data == shown[0][0]
        assert all(torch.equal(a, b) for a, b in zip(shown[0][1], tensors, strict=True))
    assert len(shown[0][1][0]) == 9


def test_a_tree_a_table_and_a_tar_of_the_same_images_have_one_digest(store, tmp_path):
    found = [read(store, unlabelled(kind), WAYS[kind](tmp_path / kind)) for kind in WAYS]
    assert len({data.digest for data in found}) == 1
    assert {data.classes for data in found} == {0}


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
def test_other_names_of_class_folders_change_nothing(store, tmp_path, stream):
    data = unlabelled("folder", stream=stream)
    root = tree(tmp_path / "images", LABELS)
    before = read(store, data, root)
    shown = open_images(store, before)[0]
    bytes_before = shown.ranges.read_all(range(len(shown))) if stream else None
    (root / "cat").rename(root / "zebra")
    after = read(store, data, root)
    assert after == before
    again = open_images(store, after)[0]
    if stream:  # the index names the files as they are called now
        assert again.ranges.read_all(range(len(again))) == bytes_before
    (root / "zebra").rename(root / "cat")
    assert read(store, data, root) == before
    if stream:
        shown = open_images(store, before)[0]
        assert shown.ranges.read_all(range(len(shown))) == bytes_before


def test_there_are_no_classes_and_all_targets_are_zero(store, tmp_path):
    heard: list[str] = []
    data = read(store, unlabelled("folder"), tree(tmp_path / "images", LABELS), heard.append)
    train, test = open_images(store, data)
    assert (data.classes, train.names, test.names) == (0, (), ())
    assert train.targets.dtype == torch.int64 and not train.targets.any()
    assert (len(train), len(test)) == (18, 5)
    assert heard[-1].startswith("no labels; 18 train, 5 test, which are 0.2 of all, held out")
    assert ResolvedData.read(data.plain()) == data


def test_a_recipe_without_labels_says_so_and_one_with_labels_is_as_before(store, tmp_path):
    root = tree(tmp_path / "images", LABELS)
    labelled = read(store, Data(name="folder"), root)
    assert "labels" not in canonical(labelled) and labelled.classes == 3
    alone = read(store, Data(name="folder", labels="none"), root)
    assert '"labels":"none"' in canonical(alone)
    assert alone.digest != labelled.digest
    with pytest.raises(DataError, match=r"run\.data\.digest: expected"):
        read(store, Data(name="folder", labels="none", digest=labelled.digest), root)


def test_classes_of_images_without_labels_are_refused():
    for fields in ({"labels": "none", "classes": 10}, {"classes": 0}):
        with pytest.raises(ValueError, match="exclude each other"):
            Data(name="folder", **fields)


LAYOUTS = {
    "a flat folder": (["a.png", "b.png"], 2, None),
    "folders of any depth": (["2024/05/a.png", "2024/b.png", "2025/c.png", "d.png"], 4, None),
    "folders of splits": (["train/a.png", "train/x/b.png", "test/c.png"], 2, 1),
    "flat validation": (["train/a.png", "train/b.png", "val/c.png", "val/d.png"], 2, 2),
    "classes in folders of splits": (["Train/x/a.png", "Train/y/b.png", "val/x/c.png"], 2, 1),
    "only training": (["train/x/a.png", "train/b.png"], 2, None),
    "a class called train": (["train/a.png", "bus/b.png"], 2, None),
    "only test images": (["test/a.png", "val/b.png"], 2, None),
}


@each("layout", [*LAYOUTS])
def test_any_tree_of_images_is_read(tmp_path, layout):
    files, train, test = LAYOUTS[layout]
    for number, name in enumerate(files):
        put(tmp_path / name, encoded(picture(number)))
    splits = SOURCES["folder"](tmp_path, labels=False).splits
    counts = {split: len(samples.labels) for split, samples in splits.items()}
    assert counts == {"train": train} | ({} if test is None else {"test": test})


@each("files", [["a.png"], ["train/a.png", "test/b.png"], ["one/a.png"]])
def test_a_tree_without_class_folders_names_what_to_set(tmp_path, files):
    for name in files:
        put(tmp_path / name)
    with pytest.raises(DataError, match=r"set run\.data\.labels: none"):
        SOURCES["folder"](tmp_path)


@each("kind", ["webdataset", "table"])
def test_a_table_or_tar_without_labels_names_what_to_set(tmp_path, kind):
    with pytest.raises(DataError, match=r"set run\.data\.labels: none"):
        SOURCES[kind](WAYS[kind](tmp_path))


@pytest.mark.slow
@each("name", ["a.arrow", "stream.arrow", "compressed.arrow", "a.feather", "a.parquet"])
@each("columns", [["image"], ["image", "size", "caption"]])
def test_tables_of_each_kind_need_no_labels(tmp_path, name, columns):
    content = table().append_column("size", pa.array(range(ROWS)))
    content = content.append_column("caption", pa.array(["a"] * ROWS)).select(columns)
    dataset = SOURCES["table"](put_table(tmp_path / name, content), labels=False)
    assert images(dataset) == IMAGES and not dataset.splits["train"].labels.any()


def test_labels_that_cannot_be_read_are_not_looked_at(tmp_path):
    put_tar(tmp_path / "tar/all.tar", samples(range(ROWS), lambda row: {"cls": "?", "json": "{"}))
    put(tmp_path / "tar/classes.json", "not JSON")
    assert images(SOURCES["webdataset"](tmp_path / "tar", labels=False)) == IMAGES
    labels = [None, -1, 5] * 7 + [None, 1]
    path = put_table(tmp_path / "all.parquet", table(labels=labels))
    assert images(SOURCES["table"](path, labels=False)) == IMAGES


def test_a_sample_of_a_tar_without_an_image_is_not_read_and_counted(tmp_path):
    put_tar(tmp_path / "a.tar", samples(range(3)) | {"lost.cls": "1"})
    dataset = SOURCES["webdataset"](tmp_path, labels=False)
    assert len(dataset.splits["train"].labels) == 3
    assert dataset.about.unread == {".cls": 1}


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
def test_images_that_cannot_be_used_are_named_or_left_out(store, tmp_path, stream):
    root = tree(tmp_path / "images")
    put(root / "005.png", "no image")
    data, heard = unlabelled("folder", stream=stream), []
    with pytest.raises(DataError, match=re.escape("005.png")):
        read(store, data, root)
    train, test = open_images(store, read(store, data, root, heard.append, skip_bad=True))
    assert len(train) + len(test) == ROWS - 1
    assert "1 image that cannot be used, left out" in heard[-1]


@pytest.mark.slow
def test_a_published_dataset_loses_its_labels(store):
    data = read(store, unlabelled("digits"), None)
    train, test = open_images(store, data)
    assert (data.classes, len(train) + len(test)) == (0, 1797)
    assert not train.targets.any()


def test_a_pack_without_labels_is_one_of_images_alone(store, tmp_path):
    root = tree(tmp_path / "images")
    result = call(root, tmp_path / "pack", "--labels", "none", "--shard-mb", "0.004")
    assert "23 images without labels" in result.output
    assert "run: {data: {name: table, labels: none, stream: {}}}" in result.output
    dataset = read_pack(str(tmp_path / "pack"))
    assert images(dataset) == IMAGES and dataset.names == ()
    loose = SOURCES["folder"](root, labels=False)
    assert dataset.digest == digest(store, loose)
    data = unlabelled("table", stream=True)
    assert read(store, data, tmp_path / "pack").digest == dataset.digest
    first = images(SOURCES["table"](min((tmp_path / "pack").glob("train-0*")), labels=False))
    assert first == IMAGES[: len(first)], "its shards are tables of images"


def test_a_pack_without_labels_is_refused_where_labels_are_wanted(tmp_path):
    call(tree(tmp_path / "images"), tmp_path / "pack", "--labels", "none")
    with pytest.raises(DataError, match="packed without labels; for images without labels, set"):
        SOURCES["table"](tmp_path / "pack")


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
def test_a_pack_with_labels_is_read_without_them(store, tmp_path, stream):
    root = tree(tmp_path / "images", sorted(LABELS))
    call(root, tmp_path / "pack")
    data = read(store, unlabelled("table", stream=stream), tmp_path / "pack")
    assert data.digest == read(store, unlabelled("folder"), root).digest
    assert data.classes == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*WAYS])
def test_images_at_a_url_need_no_labels(store, tmp_path, bucket, kind):
    path = WAYS[kind](tmp_path / "images", LABELS[:ROWS])
    root, url = tmp_path / "images", join_path(bucket, kind)
    for file in [path] if path.is_file() else path.rglob("*.png"):
        Files.at(url).put(file.relative_to(root).as_posix(), file.read_bytes())
    data = read(store, unlabelled(kind, stream=True), url)
    assert data.digest == read(store, unlabelled(kind), root).digest
    train, _ = open_images(store, data)
    assert train.ranges.read(0) in IMAGES


def test_mixed_samples_without_classes_have_no_target_distribution(store, tmp_path):
    augment = Augment(mix=Mix())
    data = read(store, unlabelled("folder", augment=augment), tree(tmp_path / "images"))
    batch = Views(open_images(store, data)[0], data).batch(torch.arange(4), 0)
    assert batch.targets.shape == (4, 0) and batch.weights is not None
