"""Packs, tables and tar shards in a bucket, of a real server that speaks S3."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from raykd.core.errors import CacheCorrupt, DataError, Unreachable
from raykd.data.dataset import open_images, read
from raykd.data.packing import Packing, into_store, source_of
from raykd.data.recipe import Data, Stream
from raykd.data.sources.files import Files, join_path, split_path
from raykd.data.sources.folders import read_folder
from raykd.data.sources.pack_format import MARKER, PLAN, is_pack, read_pack
from raykd.data.sources.tars import read_webdataset
from raykd.storage.store import Store
from tests.data.packs import (
    IMAGES,
    LABELS,
    MB,
    call,
    digest,
    images,
    packed,
    packing,
    put_table,
    quiet,
    same,
    shards,
    table,
)
from tests.data.photos import photos

STREAM = Stream(size=24, resize=28)


def uploaded(root, url: str) -> str:
    """The same files below a URL."""
    files = Files.at(url)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            files.put(path.relative_to(root).as_posix(), path.read_bytes())
    return url


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos", each=4)


@pytest.mark.slow
def test_a_pack_is_made_from_one_bucket_into_another_and_streamed(store, root, bucket, tmp_path):
    source = uploaded(root, join_path(bucket, "photos"))
    assert source_of(source) == "folder"
    target = join_path(bucket, "pack")
    packing(source, target).begin()
    with pytest.raises(DataError, match="not finished"):
        is_pack(Files.at(target))
    result = json.loads(call(source, target, "--shard-mb", MB, "--json").stdout)
    assert result["made"] == result["shards"] > 2
    dataset, folder = read_pack(target), read_folder(str(root))
    same(dataset, folder)
    assert dataset.digest == digest(store, folder)
    assert not Files.at(target).has(PLAN)
    data = read(store, Data(name="table", stream=STREAM), target)
    train, _ = open_images(store, data)
    assert train.ranges.read_all([0, 5]) == [images(folder)[0], images(folder)[5]]
    # A folder that is streamed from the bucket itself is the same dataset.
    again = Store(tmp_path / "again")
    assert read(again, Data(name="folder", stream=STREAM), source).digest == dataset.digest


@pytest.mark.slow
def test_a_pack_in_a_bucket_is_gone_on_with_and_mended(root, bucket):
    work = packing(root, bucket)
    candidates = work.begin()
    first = [work.make(part, candidates[part]) for part in work.parts[:2]]
    made = packed(root, bucket)
    assert [one.adopted for one in made[:3]] == [True, True, False]
    files, name = Files.at(bucket), first[0].shard.name
    data = files.load(name).to_pybytes()
    files.put(name, data[:-1])
    with pytest.raises(CacheCorrupt, match=f"{name}: expected {len(data)} bytes, found"):
        read_pack(bucket)
    files.put(name, b"x" + data[1:])
    assert [one.shard.name for one in packed(root, bucket) if not one.adopted] == [name]
    same(read_pack(bucket), read_folder(str(root)))


@pytest.mark.slow
def test_a_bucket_with_other_things_is_refused(root, bucket):
    Files.at(bucket).put("letter.txt", b"text")
    with pytest.raises(DataError, match="the folder is not empty, and holds no pack"):
        packing(root, bucket).begin()
    elsewhere = bucket.replace("s3://b", "s3://no-such-bucket-b")
    with pytest.raises(Unreachable, match="there is no bucket"):
        packing(root, elsewhere).begin()


@pytest.mark.slow
def test_a_pack_is_read_from_a_bucket_into_another(root, bucket):
    call(root, join_path(bucket, "a"), "--shard-mb", MB)
    source = read_pack(join_path(bucket, "a"))
    files = Files.at(join_path(bucket, "b"))
    work = Packing(source, "a", files, shard_mb=1.0)
    work.finish(work.make_all(work.begin()))
    again = read_pack(files.root)
    same(source, again)
    assert again.digest == source.digest and len(work.parts) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "compressed.arrow", "stream.arrow"])
def test_tables_in_a_bucket_are_packed_into_the_store(store, tmp_path, bucket, name):
    put_table(tmp_path / "tables" / name, table(struct=True))
    url = uploaded(tmp_path / "tables", join_path(bucket, "tables"))
    dataset = into_store(store, "table", url, quiet)
    assert images(dataset) == IMAGES and dataset.splits["train"][1].tolist() == LABELS
    folder, mark, options = url.partition("?")
    single = f"{folder}/{name}{mark}{options}"
    assert split_path(single) == (url, name) and source_of(single) == "table"
    assert into_store(store, "table", single, quiet).digest == dataset.digest
    data = read(store, Data(name="table", stream=Stream(size=4, resize=5)), url)
    assert data.digest == dataset.digest


@pytest.mark.slow
def test_parquet_files_of_two_splits_are_packed_from_a_bucket_to_a_bucket(bucket, tmp_path):
    pq.write_table(table(), tmp_path / "train.parquet", row_group_size=4)
    pq.write_table(table(IMAGES[:6], LABELS[:6]), tmp_path / "test.parquet")
    source = tmp_path / "tables"
    source.mkdir()
    for name in ("train.parquet", "test.parquet"):
        (tmp_path / name).rename(source / name)
    url = uploaded(source, join_path(bucket, "tables"))
    result = json.loads(call(url, join_path(bucket, "pack"), "--shard-mb", 0.001, "--json").stdout)
    assert result["images"] == {"train": 23, "test": 6}
    dataset = read_pack(join_path(bucket, "pack"))
    assert images(dataset) == IMAGES and images(dataset, "test") == IMAGES[:6]


@pytest.mark.slow
def test_what_lies_in_no_file_is_packed_into_a_store_in_a_bucket(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "local"))
    data = read(Store(bucket), Data(name="digits", stream=Stream(size=8, resize=8)), None)
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "of another node"))
    train, test = open_images(Store(bucket), data)
    assert (len(train) + len(test), len(train.ranges.read(0))) == (1797, 140)
    assert "images/packs" in train.ranges.files.root


@pytest.mark.slow
def test_tar_shards_in_a_bucket_are_streamed_and_packed(store, bucket, tmp_path):
    here = read_webdataset(str(shards(tmp_path / "shards")))
    url = uploaded(tmp_path / "shards", join_path(bucket, "tars"))
    same(read_webdataset(url), here)
    pattern = join_path(bucket, "tars/train-{000..001}.tar")
    dataset = read_webdataset(pattern)
    assert np.array_equal(dataset.splits["train"][1], here.splits["train"][1])
    data = read(store, Data(name="webdataset", stream=Stream(size=4, resize=5)), url)
    train, _ = open_images(store, data)
    assert train.ranges.read_all([3]) == [images(here)[3]]
    call(url, tmp_path / "pack")
    packed_found = read_pack(str(tmp_path / "pack"))
    same(packed_found, here)
    assert packed_found.digest == data.digest
    assert not (tmp_path / "pack" / MARKER).with_name(PLAN).exists()
