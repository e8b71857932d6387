"""Caches of a teacher's outputs, read by programs that are not raykd."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import raykd
from raykd.training.inputs import open_cache

STUDENT = raykd.Student(
    "resnet8",
    data=raykd.Data("digits", holdout=0.1, limit=96, augment={"pad": 1}),
    teacher=raykd.Teacher("resnet14", optim={"epochs": 1, "batch": 32}),
    optim={"epochs": 2, "batch": 32},
)
EXPERIMENT = raykd.Experiment(STUDENT, grid={"run.method": ["kd", "rkd"]})


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The caches of two methods, of which one reads embeddings."""
    store = tmp_path_factory.mktemp("caches") / "store"
    return raykd.cache(EXPERIMENT, store, workers=0, quiet=True)


def of_split(caches, split):
    (one,) = [cache for cache in caches if cache.split == split]
    return one


def test_a_cache_is_made_and_described(caches):
    train, test = of_split(caches, "train"), of_split(caches, "test")
    assert (train.rows, train.views) == (96, (0, 1))
    assert (test.rows, test.views) == (180, (0,))
    assert train.teacher.model == "resnet14"
    assert repr(train) == "<Cache of resnet14, train: 2 views of 96 images>"
    assert list(train.store.finished("students")) == []


def test_its_table_has_what_training_reads(caches):
    train = of_split(caches, "train")
    table = train.to_arrow()
    assert table.column_names == ["id", "view", "logits", "embedding"]
    assert table.schema.field("logits").type == pa.list_(pa.float32(), 10)
    assert table["id"].to_pylist() == [*range(96), *range(96)]
    assert table["view"].to_pylist() == [0] * 96 + [1] * 96
    read = open_cache(train.store, train.recipe, [0, 1], torch.device("cpu"))
    for view in train.views:
        outputs = read.take(torch.arange(96), view)
        rows = train.to_arrow([view])
        for name in ("logits", "embedding"):
            stored = np.stack(rows[name].to_numpy())
            assert np.array_equal(stored, getattr(outputs, name).numpy())


def test_batches_are_the_table_piece_by_piece(caches):
    train = of_split(caches, "train")
    batches = [*train.batches(size=40)]
    assert [len(batch) for batch in batches] == [40, 40, 16, 40, 40, 16]
    assert pa.Table.from_batches(batches).equals(train.to_arrow())


def test_its_files_are_plain_arrow(caches):
    train = of_split(caches, "train")
    for shard in train.shards([1]):
        with pa.memory_map(str(train.folder / shard.name)) as source:
            stored = pa.ipc.open_file(source).read_all()
        assert stored.column_names == ["logits", "maximum", "embedding"]
        assert stored.schema.field("logits").type == pa.list_(pa.float16(), 10)
        logits = np.stack(stored["logits"].to_numpy()).astype(np.float32)
        decoded = np.stack(train.to_arrow([1])["logits"].to_numpy())
        assert np.array_equal(logits + stored["maximum"].to_numpy()[:, None], decoded)


def test_a_damaged_file_is_named(caches):
    test = of_split(caches, "test")
    (shard,) = test.shards()
    path = test.folder / shard.name
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-200] + bytes(200))
        with pytest.raises(raykd.CacheCorrupt, match=shard.name):
            test.to_arrow()
    finally:
        path.write_bytes(data)


@pytest.mark.slow
def test_a_plan_says_what_is_left(caches, tmp_path):
    store = caches[0].store
    left = raykd.plan(EXPERIMENT, store, quiet=True)
    assert (left.missing, left.total) == (2, 2)
    assert (left.forwards, left.bytes) == (0, 0)
    assert "0 of 2 students are in the store" in str(left)
    whole = raykd.plan(STUDENT, tmp_path / "store", quiet=True)
    assert {item.kind for item in whole.items} == {"teacher", "cache", "students"}
