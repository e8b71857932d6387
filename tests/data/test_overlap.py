"""Images that two data sets share, counted by the hashes that reading keeps."""

from pathlib import Path

import pytest

from raykd.core.errors import CacheCorrupt
from raykd.data.dataset import open_split, read
from raykd.data.image_index import content_hash
from raykd.data.overlap import count_shared
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES
from raykd.storage.store import Store
from tests.data.files import put
from tests.data.packs import IMAGES, call, digest, put_table, table


def tree(root: Path, rows, folder=lambda row: "") -> Path:
    for row in rows:
        put(root / folder(row) / f"{row:03d}.png", IMAGES[row])
    return root


def classes(row: int) -> str:
    return f"{'train' if row < 12 else 'test'}/{'ab'[row % 2]}"


def unlabelled(**fields) -> Data:
    return Data(name="folder", labels="none", **fields)


@pytest.mark.slow
def test_test_images_that_are_trained_on_are_counted(store, tmp_path):
    probe = read(store, Data(name="folder"), tree(tmp_path / "probe", range(20), classes))
    # Rows 12 to 19 are the probe's test images; training has 10 to 15, its own test images 16 to 22
    training = tree(tmp_path / "images", range(10, 23), lambda row: "train" if row < 16 else "test")
    data = read(store, unlabelled(), training)
    assert count_shared(store, data, probe) == (4, 8)
    assert count_shared(store, probe, data) == (0, 7)


def test_what_is_held_out_is_not_trained_on(store, tmp_path):
    root = tree(tmp_path / "images", range(23))
    data = read(store, unlabelled(holdout=0.3, validation=0.2, limit=5, seed=1), root)
    trained = {tuple(image.flatten().tolist()) for image in open_split(store, data, "train").pixels}
    assert len(trained) == 5
    whole = read(store, unlabelled(holdout=0.6), root)
    held = [tuple(one.flatten().tolist()) for one in open_split(store, whole, "test").pixels]
    assert count_shared(store, data, whole) == (sum(one in trained for one in held), len(held))
    assert count_shared(store, whole, whole) == (0, len(held))


def test_images_are_the_same_in_memory_streamed_in_tables_and_in_packs(store, tmp_path):
    root = tree(tmp_path / "images", range(23))
    put_table(tmp_path / "tables/train.parquet", table())
    call(root, tmp_path / "pack", "--labels", "none")
    call(tmp_path / "tables", tmp_path / "labelled")
    probe = read(store, unlabelled(stream=Stream(size=6), holdout=0.5), root)
    ways = [
        (unlabelled(resize=4), root),
        (Data(name="table"), tmp_path / "tables"),
        (Data(name="table", labels="none"), tmp_path / "tables"),
        (Data(name="table", labels="none", stream=Stream(size=6)), tmp_path / "pack"),
        (Data(name="table", labels="none"), tmp_path / "labelled"),
        (Data(name="table"), tmp_path / "labelled"),
    ]
    for number, (data, path) in enumerate(ways):
        other = Store(tmp_path / f"store{number}")
        probed = read(other, probe, root)
        every = read(other, data.model_copy(update={"holdout": 0.05, "seed": 7}), path)
        shared = count_shared(other, every, probed)
        assert shared is not None and shared[1] == 12 and shared[0] in (11, 12), (data, shared)


def test_a_pack_is_read_without_labels_and_no_image_is_read(store, tmp_path, monkeypatch):
    root = tree(tmp_path / "images", range(20), lambda row: "ab"[row // 10])
    call(root, tmp_path / "pack")
    want = digest(store, SOURCES["folder"](root, labels=False))
    monkeypatch.setattr("raykd.data.image_index.read_images", None)
    data = Data(name="table", labels="none", stream=Stream(size=6))
    assert read(store, data, tmp_path / "pack").digest == want


def test_hashes_that_are_not_known_or_were_altered(store, tmp_path):
    data = read(store, unlabelled(), tree(tmp_path / "images", range(20)))
    (kept,) = (store.root / "images/contents").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(content_hash(IMAGES[0]), bytes(16)))
    with pytest.raises(CacheCorrupt, match="were altered"):
        count_shared(store, data, data)
    kept.unlink()
    assert count_shared(store, data, data) is None
