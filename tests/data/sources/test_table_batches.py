"""Tables that are read batch by batch: any rows, in bounded memory, packed where they must be."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raykd.data.dataset import open_images, read
from raykd.data.packing import into_store
from raykd.data.recipe import Data, Stream
from raykd.data.sources.files import Files
from raykd.data.sources.folders import read_folder
from raykd.data.sources.pack_format import spans
from raykd.data.sources.table_batches import TableFile
from tests.data.files import put
from tests.data.packs import IMAGES, LABELS, ROWS, digest, put_table, table
from tests.each import each
from tests.tiers import slow_but

KINDS = ["groups.parquet", "file.arrow", "compressed.arrow", "stream.arrow", "a.feather"]
EACH_KIND = slow_but(KINDS, ["groups.parquet", "compressed.arrow", "stream.arrow"])


def opened(path: Path) -> TableFile:
    return TableFile(Files.at(path.parent), path.name)


def read_rows(file: TableFile, start: int, stop: int) -> list[bytes]:
    return [*chain(*file.images(start, stop))]


@each("struct", slow_but([False, True], [True]))
@each("name", EACH_KIND)
def test_any_rows_are_read_in_any_order(tmp_path, name, struct):
    file = opened(put_table(tmp_path / name, table(struct=struct)))
    assert file.labels == LABELS and len(file.lengths()) == ROWS
    for start, stop in [(0, 7), (7, 8), (8, 23), (3, 4), (0, 23), (22, 23), (5, 5), (10, 15)]:
        assert read_rows(file, start, stop) == IMAGES[start:stop]


@each("name", EACH_KIND)
def test_rows_in_order_are_read_once(tmp_path, name, monkeypatch):
    path = put_table(tmp_path / name, table(), each=2)
    file = opened(path)
    opening = file._file.images
    started = []

    def counted(column: str, part: int):
        started.append(part)
        return opening(column, part)

    monkeypatch.setattr(file._file, "images", counted)
    assert [read_rows(file, row, row + 1) for row in range(ROWS)] == [[i] for i in IMAGES]
    assert started == [0]


def test_many_rows_of_a_batch_are_read_one_by_one(tmp_path):
    rows = 3000
    images, labels = [b"%d" % row for row in range(rows)], [row % 10 for row in range(rows)]
    many = pa.table({"image": images, "label": labels})
    pq.write_table(many, tmp_path / "many.parquet", row_group_size=1500)
    file = opened(tmp_path / "many.parquet")
    assert [read_rows(file, row, row + 1) for row in range(rows)] == [[i] for i in images]


@each("name", EACH_KIND)
@each("struct", slow_but([False, True], [True]))
def test_values_that_are_not_compressed_are_found_in_the_file(tmp_path, name, struct):
    path = put_table(tmp_path / name, table(struct=struct))
    ranges = opened(path).ranges()
    data = path.read_bytes()
    if name in ("file.arrow", "stream.arrow"):
        assert ranges is not None
        ends = zip(ranges.offset.tolist(), ranges.length.tolist(), strict=True)
        assert [data[offset : offset + length] for offset, length in ends] == IMAGES
    else:
        assert ranges is None


def test_slices_of_values_have_their_own_spans():
    values = pa.array(IMAGES, pa.large_binary())
    buffer = pa.py_buffer(bytes(values.buffers()[2]))
    moved = pa.Array.from_buffers(pa.large_binary(), ROWS, [None, values.buffers()[1], buffer])
    result = spans(moved.slice(4, 3), buffer)
    assert result is not None
    assert result[0].tolist() == np.cumsum([0, *map(len, IMAGES)])[4:7].tolist()
    assert spans(values, buffer) is None


@pytest.mark.parametrize("name", slow_but(["a.parquet", "compressed.arrow"], ["a.parquet"]))
def test_tables_are_packed_into_the_store_and_streamed(store, tmp_path, name):
    for number in range(ROWS):
        put(tmp_path / "folder/train" / str(LABELS[number]) / f"{number:02d}.png", IMAGES[number])
    order = sorted(range(ROWS), key=lambda row: LABELS[row])
    rows = table([IMAGES[row] for row in order], [LABELS[row] for row in order], struct=True)
    path = put_table(tmp_path / "tables" / name, rows)
    heard = []
    dataset = into_store(store, "table", str(path), heard.append)
    assert heard[0].startswith("packing 23 images of 'table' into")
    folder = read_folder(str(tmp_path / "folder"))
    # Same classes, labels and bytes in the same order.
    assert dataset.digest == digest(store, folder)
    assert into_store(store, "table", str(path), heard.append).digest == dataset.digest
    assert len(heard) == 1
    data = read(store, Data(name="table", stream=Stream(size=4, resize=5)), path)
    train, test = open_images(store, data)
    assert data.digest == dataset.digest and len(train) + len(test) == ROWS
    assert sorted([*train.ranges, *test.ranges]) == sorted(IMAGES)


def test_arrow_files_are_streamed_from_where_they_lie(store, tmp_path):
    path = put_table(tmp_path / "data" / "train.arrow", table(struct=True))
    put_table(tmp_path / "data" / "test-stream.arrow", table(IMAGES[:4], LABELS[:4]))
    data = read(store, Data(name="table", stream=Stream(size=4, resize=5)), path.parent)
    train, test = open_images(store, data)
    assert [*train.ranges] == IMAGES and [*test.ranges] == IMAGES[:4]
    assert train.ranges.files.root == str(path.parent)
    assert train.ranges.origin(0).startswith(f"{path}, byte ")


MEASURED = """
import sys
from raykd.data.sources.files import Files
from raykd.data.sources.table_batches import TableFile
import pyarrow as pa
file = TableFile(Files.at(sys.argv[1]), sys.argv[2])
before = pa.default_memory_pool().max_memory()
total = sum(len(data) for images in file.images(0, len(file)) for data in images)
print(total, pa.default_memory_pool().max_memory())
"""


@pytest.mark.slow
def test_a_row_group_that_is_larger_than_memory_is_read_page_by_page(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.bytes(100_000) for _ in range(1000)]
    content = table(images, [0] * len(images), struct=True)
    # 100 MB in one row group, in pages of 1.6 MB.
    pq.write_table(content, tmp_path / "one.parquet", write_batch_size=16)
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    command = [sys.executable, "-c", MEASURED, str(tmp_path), "one.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, most = map(int, done.stdout.split())
    assert total == 100_000_000
    assert most < 60_000_000  # batches of 16 MB, and pages
