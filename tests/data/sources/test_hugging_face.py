"""Datasets that Hugging Face's library wrote, or that it fetches from its Hub."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from raykd.core.errors import DataError
from raykd.data import dataset
from raykd.data.packing import source_of
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES, hub_datasets
from raykd.data.sources.byte_ranges import Ranges
from raykd.storage.store import Store
from tests.data.files import encoded, picture, pixels, put
from tests.data.hub_server import hub
from tests.data.saved import IMAGE, NUMBER, TEXT, classes, save, save_splits
from tests.each import each

FEATURES = {"id": NUMBER, "picture": IMAGE, "kind": classes("cat", "dog", "never")}


def rows(count, start=0):
    """Columns of FEATURES."""
    images = [encoded(picture(start + row)) for row in range(count)]
    kinds = [row % 2 for row in range(count)]
    return {"id": [*range(count)], "picture": images, "kind": kinds}


def refused(folder, labels=True):
    with pytest.raises(DataError) as error:
        SOURCES["hf"](folder, labels=labels)
    return str(error.value)


@each("shards", [1, 3])
def test_columns_are_found_by_their_features(tmp_path, shards):
    saved = SOURCES["hf"](save(tmp_path / "saved", FEATURES, rows(6), shards))
    assert saved.names == ("cat", "dog", "never") and [*saved.splits] == ["train"]
    assert saved.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [*saved.splits["train"].images] == rows(6)["picture"]
    assert np.array_equal(pixels(saved)[4], np.asarray(picture(4)))


def test_splits_are_found_by_their_names(tmp_path):
    parts = {"validation": rows(2, 20), "testing": rows(3, 10), "train": rows(4), "extra": rows(2)}
    saved = SOURCES["hf"](save_splits(tmp_path / "a", FEATURES, **parts))
    counts = {split: len(samples.labels) for split, samples in saved.splits.items()}
    assert counts == {"train": 4, "test": 3}
    assert saved.about.unread == {
        "tables of split 'validation'": 1,
        "tables of split 'extra'": 1,
    }
    del parts["testing"]
    saved = SOURCES["hf"](save_splits(tmp_path / "b", FEATURES, **parts))
    assert [*saved.splits["test"].images] == rows(2, 20)["picture"]
    saved = SOURCES["hf"](save_splits(tmp_path / "c", FEATURES, all=rows(4)))
    assert [*saved.splits] == ["train"]
    text = refused(save_splits(tmp_path / "d", FEATURES, one=rows(4), two=rows(4)))
    assert "none of its splits 'one', 'two' is called 'train'" in text


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path):
    secret = rows(3, 10) | {"kind": [-1, -1, -1]}
    parts = {"train": rows(4), "test": secret, "validation": rows(2, 20)}
    saved = SOURCES["hf"](save_splits(tmp_path / "a", FEATURES, **parts))
    assert saved.splits["test"].labels.tolist() == [0, 1]
    assert len(SOURCES["hf"](tmp_path / "a", labels=False).splits["test"].labels) == 3
    secret["kind"][1] = 0
    text = refused(save_splits(tmp_path / "b", FEATURES, **parts))
    assert "row 0: label -1 is out of range" in text


def test_a_column_without_a_class_label_counts_where_it_is_called_a_label(tmp_path):
    features = {"image": IMAGE, "label": TEXT}
    columns = {"image": rows(4)["picture"], "label": ["b", "a", "b", "a"]}
    saved = SOURCES["hf"](save(tmp_path / "saved", features, columns))
    assert saved.names == ("a", "b") and saved.splits["train"].labels.tolist() == [1, 0, 1, 0]


def test_of_several_columns_the_one_with_the_usual_name_counts(tmp_path):
    features = {"mask": IMAGE, "img": IMAGE, "coarse_label": classes("x"), "fine_label": TEXT}
    features["fine_label"] = classes("p", "q")
    columns = {"mask": [b""] * 2, "img": rows(2)["picture"], "coarse_label": [0, 0]}
    saved = SOURCES["hf"](save(tmp_path / "saved", features, columns | {"fine_label": [1, 0]}))
    assert saved.names == ("p", "q") and np.array_equal(pixels(saved)[0], np.asarray(picture(0)))


def test_no_column_or_several_are_a_sentence_that_names_them(tmp_path):
    images, no_images = rows(2)["picture"], {"a": [1, 2], "kind": [0, 1]}
    text = refused(save(tmp_path / "a", {"a": NUMBER, "kind": classes("x", "y")}, no_images))
    assert "no column with the feature Image, expected one, or one called image or img" in text
    assert "there are: a (int64), kind (ClassLabel)" in text
    text = refused(save(tmp_path / "b", {"a": IMAGE, "b": IMAGE}, {"a": images, "b": images}))
    assert "2 columns with the feature Image" in text
    folder = save(tmp_path / "c", {"a": IMAGE, "b": NUMBER}, {"a": images, "b": [0, 1]})
    text = refused(folder)
    assert "no column with the feature ClassLabel" in text and "labels: none" in text
    assert len(SOURCES["hf"](folder, labels=False).splits["train"].labels) == 2
    two = {"a": IMAGE, "b": classes("x", "y"), "c": classes("x", "y")}
    text = refused(save(tmp_path / "d", two, {"a": images, "b": [0, 1], "c": [0, 1]}))
    assert "2 columns with the feature ClassLabel" in text


def test_files_that_are_not_as_the_library_writes_them_are_a_sentence(tmp_path):
    put(tmp_path / "images/cat/1.png")
    assert "expected a folder that save_to_disk wrote" in refused(tmp_path / "images")
    folder = save(tmp_path / "saved", FEATURES, rows(2))
    state = folder / "state.json"
    whole = json.loads(state.read_text())
    for value, sentence in (
        (
            {"_data_files": [{"filename": "../elsewhere.arrow"}]},
            "'../elsewhere.arrow' is not a file",
        ),
        ({"_data_files": "data.arrow"}, "expected the names of data files"),
        (whole | {"_indices_data_files": [{"filename": "i.arrow"}]}, "chosen by an index"),
        ([], "expected an object"),
    ):
        state.write_text(json.dumps(value))
        assert sentence in refused(folder)
    state.write_text("{")
    assert f"{state}: cannot be read as JSON" in refused(folder)
    state.write_text(json.dumps(whole))
    (folder / "dataset_info.json").write_text('{"features": null}')
    assert "expected the features of columns" in refused(folder)


def test_they_are_the_same_images_in_memory_streamed_and_as_tables(tmp_path):
    names = {"image": IMAGE, "label": classes("cat", "dog")}
    columns = {"image": rows(6)["picture"], "label": rows(6)["kind"]}
    folder, store = save(tmp_path / "saved", names, columns, 2), Store(tmp_path / "store")
    stream = Stream(size=6, resize=6)
    read = [
        dataset.read(store, Data(name=name, stream=how), folder)
        for name in ("hf", "table")
        for how in (None, stream)
    ]
    assert len({data.digest for data in read[:2]}) == 1
    assert read[0].digest != read[2].digest  # that has no names of classes here
    images, _ = dataset.open_images(store, read[1])
    assert isinstance(images.ranges, Ranges) and images.ranges.files.root == str(folder)
    assert not (store.root / "images/packs").exists()  # read where they are
    assert source_of(str(folder)) == "hf"


@each("path", ["hf:", "hf:a/b/c/d", "hf:../up", "hf:a/b@", "hf:a/b@x y"])
def test_what_is_no_name_on_the_hub_is_a_sentence(tmp_path, path):
    with pytest.raises(DataError, match=r"data\.path: hf:.*expected hf:owner/name"):
        dataset.read(Store(tmp_path), Data(name="hf"), path)


def test_names_on_the_hub_are_folders_of_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path))
    assert hub_datasets.local("hf:a/b") == str(tmp_path / "hf/a--b")
    assert hub_datasets.local("hf:a/b/c@v1.0") == str(tmp_path / "hf/a--b@c@v1.0")
    assert hub_datasets.local("there/a") == "there/a"
    put(tmp_path / "hf/a--b/dataset_info.json", "{}")
    assert hub_datasets.fetched("hf:a/b") == str(tmp_path / "hf/a--b")  # without a network


@pytest.mark.slow
def test_what_the_library_writes_is_read(tmp_path):
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"id": library.Value("int64"), "picture": library.Image(), "kind": library.ClassLabel(3)}
    )
    columns = rows(6) | {"picture": [picture(row) for row in range(6)]}
    whole = library.Dataset.from_dict(columns, features=features)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    chosen = {"train": whole, "validation": whole.select([3, 1])}
    library.DatasetDict(chosen).save_to_disk(tmp_path / "two")
    for folder in ("one", "two"):
        saved = SOURCES["hf"](tmp_path / folder)
        assert saved.names == ("0", "1", "2")
        assert saved.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert np.array_equal(pixels(saved)[5], np.asarray(picture(5)))
        assert isinstance(saved.splits["train"].images, Ranges)
    assert np.array_equal(pixels(saved, "test")[0], np.asarray(picture(3)))


@pytest.mark.slow
def test_datasets_of_the_hub_are_downloaded_once(tmp_path):
    library = pytest.importorskip("datasets")
    folders, tables = tmp_path / "folders", tmp_path / "tables"
    for number in range(4):
        for split, seed in (("train", number), ("test", 10 + number)):
            name = ("cat", "dog")[number % 2]
            put(folders / f"data/{split}/{name}/{number}.png", encoded(picture(seed)))
    loaded = library.load_dataset(
        "imagefolder", data_dir=str(folders / "data"), cache_dir=str(tmp_path / "cache")
    )
    (tables / "data").mkdir(parents=True)
    for split, part in loaded.items():
        part.to_parquet(tables / f"data/{split}-00000-of-00001.parquet")
    names = ("hf:them/folders", "hf:them/tables@main")
    # In another process, since the library reads the address of the Hub when it is imported.
    code = (
        "import sys; from raykd.data import dataset; from raykd.data.recipe import Data;"
        "from raykd.storage.store import Store;"
        "[print(dataset.read(Store(store), Data(name='hf'), name).digest, flush=True)"
        " for store in sys.argv[1:3] for name in sys.argv[3:]]"
    )
    with hub(folders=folders, tables=tables) as server:
        environment = os.environ | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "RAYKD_DATA": str(tmp_path / "downloads"),
        }
        stores = [str(tmp_path / "one"), str(tmp_path / "two")]
        command = [sys.executable, "-c", code, *stores, *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    digests = done.stdout.split()[-4:]
    assert digests[:2] == digests[2:]
    fetches = [path for path in server.asked if path.endswith((".png", ".parquet"))]
    assert len({*fetches}) == 8 + 2 and len(fetches) <= 2 * len({*fetches})  # HEAD and GET
    for folder in ("them--folders", "them--tables@main"):
        saved = SOURCES["hf"](tmp_path / "downloads/hf" / folder)
        assert saved.names == ("cat", "dog") and len(saved.splits["test"].labels) == 4
        assert np.array_equal(pixels(saved, "test")[0], np.asarray(picture(10)))
