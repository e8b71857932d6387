"""Tables that others wrote: damaged ones end in a sentence, missing images are left to skip."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raykd.core.errors import DataError
from raykd.data.packing import Packing, source_of
from raykd.data.sources import SOURCES
from raykd.data.sources.files import Files
from raykd.data.sources.pack_format import read_pack
from raykd.data.sources.tables import read_tables
from tests.data.files import put
from tests.data.packs import IMAGES, LABELS, ROWS, call, put_table, table
from tests.each import each
from tests.tiers import slow_but


def use(path: Path) -> None:
    """Read all labels and images, and look for where they lie."""
    read_rows(path)
    find(path)


def read_rows(path: Path) -> int:
    """How many images there are, once they were all read."""
    return sum(1 for rows, _ in read_tables(path).splits.values() for _ in rows)


def find(path: Path) -> None:
    """Read every image by itself."""
    for images, _ in read_tables(str(path)).splits.values():
        for row in range(len(images)):
            assert len([*images.blocks(row, row + 1)]) == 1


def apart(script: str, *words: object) -> str:
    """The output of a script in a process of its own, which must come to its end."""
    command = [sys.executable, "-c", script, *map(str, words)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-2000:])
    return done.stdout


# Damage


def lying(path: Path, edge: int, new: int, wide: bool) -> bool:
    """Replace the last of the images' offsets in a file, and say whether it was there."""
    pattern = "<q" if wide else "<i"
    data = bytearray(path.read_bytes())
    offset = data.find(struct.pack(pattern, edge))
    if offset < 0:
        return False
    data[offset : offset + struct.calcsize(pattern)] = struct.pack(pattern, new)
    path.write_bytes(data)
    return True


COLUMNS = {
    "binary": pa.array(IMAGES, pa.binary()),
    "large": pa.array(IMAGES, pa.large_binary()),
    "struct": table(struct=True)["image"].combine_chunks(),
}


LYING = """
import sys
from pathlib import Path
from raykd.core.errors import DataError
from tests.data.sources.test_foreign_tables import find, read_rows
for path in sorted(Path(sys.argv[1]).iterdir()):
    for use in (read_rows, find):
        try:
            use(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: cannot be read as a table ("), error
            print(path.name, flush=True)
"""


@pytest.mark.slow
def test_an_offset_that_lies_is_a_sentence(tmp_path):
    edge, count = sum(map(len, IMAGES[:7])), 0
    for kind, column in COLUMNS.items():
        for name in ("file.arrow", "stream.arrow"):
            for new in (2**31 - 1, -1):
                content = pa.table({"image": column, "label": LABELS})
                path = put_table(tmp_path / f"{kind}{new}-{name}", content, each=ROWS)
                assert lying(path, edge, new, wide=kind == "large")
                count += 1
    assert len(apart(LYING, tmp_path).split()) == 2 * count


def labels_of(words) -> pa.Table:
    return pa.table({"image": pa.array(IMAGES[:8], pa.binary()), "label": words})


WORDS = ["cat", "dog", "owl", "hen"] * 2
LABEL_COLUMNS = {
    "texts": (pa.array(WORDS), struct.pack("<ii", 3, 6), struct.pack("<ii", 3, 2**31 - 1)),
    "large texts": (
        pa.array(WORDS, pa.large_string()),
        struct.pack("<qq", 3, 6),
        struct.pack("<qq", 3, 2**40),
    ),
    "indices": (
        pa.array(WORDS).dictionary_encode(),
        struct.pack("<iiii", 0, 1, 2, 3),
        struct.pack("<iiii", 0, 1, 2**30, 3),
    ),
    "words of a dictionary": (
        pa.array(WORDS).dictionary_encode(),
        struct.pack("<iii", 0, 3, 6),
        struct.pack("<iii", 0, 3, 2**30),
    ),
    "letters": (pa.array(WORDS), b"catdogowl", b"cat\xe9oeowl"),
}


@each("kind", slow_but(LABEL_COLUMNS, ["indices", "letters"]))
def test_labels_that_lie_are_a_sentence(tmp_path, kind):
    words, before, after = LABEL_COLUMNS[kind]
    path = put_table(tmp_path / "file.arrow", labels_of(words), each=8)
    data = path.read_bytes()
    assert data.count(before) >= 1
    path.write_bytes(data.replace(before, after))
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as a table \("):
        use(path)


FUZZ = """
import random, sys
from pathlib import Path
from raykd.core.errors import RaykdError
from tests.data.sources.test_foreign_tables import use
for path in sorted(Path(sys.argv[1]).iterdir()):
    data, rng = path.read_bytes(), random.Random(5)
    for number in range(int(sys.argv[2])):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            where = rng.randrange(len(data))
            altered[where] = rng.choice([0, 255, 127, 128, altered[where] ^ 1 << rng.randrange(8)])
        path.write_bytes(altered if number % 4 else altered[: rng.randrange(len(altered))])
        print(number, flush=True)
        try:
            use(path)
        except RaykdError:
            pass
"""


def small(path: Path) -> Path:
    """A table that is mostly structure, so that damage meets it."""
    content = pa.table({
        "image": pa.array([b"x", None, b"yz"] * 4, pa.binary()),
        "label": pa.array(["a", "b", "a"] * 4),
        "other": pa.array([[1], [2, 3], None] * 4),
    })  # fmt: skip
    return put_table(path, content, each=6)


@pytest.mark.slow
def test_damage_anywhere_in_a_table_ends_in_a_sentence_or_nowhere(tmp_path):
    for name in ("file.arrow", "stream.arrow", "a.parquet"):
        small(tmp_path / name)
    assert len(apart(FUZZ, tmp_path, 100).split()) == 300


@pytest.mark.parametrize("name", slow_but(["a.parquet", "file.arrow"], ["a.parquet"]))
def test_a_table_that_is_cut_anywhere_is_named(tmp_path, name):
    path = put_table(tmp_path / name, table())
    data = path.read_bytes()
    for length in random.Random(0).sample(range(len(data)), 12):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"^{path}: cannot be read as a table \("):
            use(path)


# Columns


def test_two_columns_of_one_name_are_refused(tmp_path):
    image, label = table()["image"], table()["label"]
    for twice in ("image", "label"):
        names = ["image", "label", twice]
        columns = [image, label, {"image": image, "label": label}[twice]]
        content = pa.Table.from_arrays(columns, names=names)
        path = put_table(tmp_path / twice / "train.arrow", content)
        with pytest.raises(DataError, match=rf"^{path}: 2 columns are called '{twice}'"):
            use(path)
    content = pa.Table.from_arrays([image, label, label, label], names=["image", "label", "x", "x"])
    use(put_table(tmp_path / "other.arrow", content))


IMAGE_COLUMNS = {
    "large": pa.array(IMAGES, pa.large_binary()),
    "views": pa.array(IMAGES, pa.binary_view()),
    "structs of views": pa.array(
        [{"bytes": data} for data in IMAGES], pa.struct([("bytes", pa.binary_view())])
    ),
}


@each("name", slow_but(["a.parquet", "file.arrow"], ["file.arrow"]))
@each("kind", slow_but(IMAGE_COLUMNS, ["large", "structs of views"]))
def test_bytes_of_any_width_are_images(tmp_path, kind, name):
    content = pa.table({"image": IMAGE_COLUMNS[kind], "label": LABELS})
    path = put_table(tmp_path / name, content, each=ROWS)
    assert [*read_tables(path).splits["train"][0]] == IMAGES
    dataset = SOURCES["table"](str(path))
    assert len(dataset.splits["train"][1]) == ROWS


NO_IMAGES = {
    "lists": pa.array([[*data] for data in IMAGES], pa.list_(pa.uint8())),
    "texts": pa.array(["x"] * ROWS),
    "nothing": pa.nulls(ROWS),
    "numbers": pa.array([1] * ROWS),
    "structs of texts": pa.array([{"bytes": "x"}] * ROWS),
    "structs of two": pa.StructArray.from_arrays([pa.array(IMAGES)] * 2, ["bytes", "bytes"]),
}


@each("kind", slow_but(NO_IMAGES, ["lists", "structs of two"]))
def test_a_column_that_holds_no_encoded_images_is_refused(tmp_path, kind):
    content = pa.table({"image": NO_IMAGES[kind], "label": LABELS})
    path = put_table(tmp_path / "file.arrow", content)
    with pytest.raises(DataError, match=rf"^{path}: the image column (holds|is a struct)"):
        use(path)


# Images that are not there


def with_paths(rows: list[tuple[bytes | None, str | None] | None]) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [None if row is None else {"bytes": row[0], "path": row[1]} for row in rows]
    return pa.table({"image": pa.array(values, kind), "label": [0, 1] * (len(rows) // 2)})


ROWS_OF_PATHS = [
    (IMAGES[0], "elsewhere.png"), (None, "images/1.png"), (IMAGES[2], None), (None, "gone.png"),
    None, (None, None), (None, "../outside.png"), (None, "/etc/hostname"), (None, "a\0b"),
    (None, "x" * 5000), (None, "images"), (IMAGES[11], "images/1.png"),
]  # fmt: skip
KINDS = ["groups.parquet", "file.arrow", "compressed.arrow", "stream.arrow", "a.feather"]


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "data/tables/images/1.png", IMAGES[1])
    put(tmp_path / "data/outside.png", IMAGES[1])
    return tmp_path / "data"


@pytest.mark.parametrize("name", slow_but(KINDS, ["groups.parquet", "stream.arrow"]))
def test_a_row_of_a_path_alone_has_the_file_beside_the_table(folder, name):
    path = put_table(folder / "tables" / name, with_paths(ROWS_OF_PATHS))
    images = [*read_tables(folder).splits["train"][0]]
    assert [images[row] for row in (0, 1, 2, 11)] == [IMAGES[row] for row in (0, 1, 2, 11)]
    for row in (3, 4, 5, 6, 7, 8, 9, 10):
        assert isinstance(images[row], DataError), row
        assert str(images[row]).startswith(f"{path}, row {row}: the image is missing")
    assert "no file 'gone.png' in the table's folder" in str(images[3])


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow"])
def test_a_row_of_a_path_alone_is_streamed_from_that_file(folder, name):
    put_table(folder / "tables" / name, with_paths(ROWS_OF_PATHS))
    dataset = read_tables(str(folder))
    assert dataset is not None
    ranges, _ = dataset.splits["train"]
    images = [ranges.attempt(row) for row in range(len(ranges))]
    assert [images[row] for row in (0, 1, 2, 11)] == [IMAGES[row] for row in (0, 1, 2, 11)]
    assert all(isinstance(images[row], DataError) for row in range(3, 11))
    kept = ranges.take(torch.tensor([5, 1, 0]))
    assert isinstance(kept.attempt(0), DataError)
    assert [kept.attempt(1), kept.attempt(2)] == [IMAGES[1], IMAGES[0]]


@pytest.mark.parametrize("name", ["groups.parquet", "file.arrow"])
def test_what_tables_name_is_part_of_what_changes(folder, name):
    put_table(folder / "tables" / name, with_paths(ROWS_OF_PATHS))
    before = read_tables(folder).stamp
    assert read_tables(folder).stamp == before
    put(folder / "tables/images/1.png", IMAGES[3] + b" ")
    assert read_tables(folder).stamp != before


@each("name", slow_but(KINDS, ["groups.parquet", "stream.arrow"]))
def test_missing_images_are_said_all_at_once_or_left_out(tmp_path, name):
    images = [*IMAGES[:3], None, b"", *IMAGES[5:9], None, *IMAGES[10:]]
    path = put_table(tmp_path / name, table(images))
    tables = read_tables(path)

    def pack(target, **how):
        packing = Packing(tables, str(path), Files.at(tmp_path / target), **how)
        return packing.finish(packing.make_all(packing.begin()))

    with pytest.raises(DataError, match=r"^3 images cannot be used") as caught:
        pack("strict")
    for row in (3, 9):
        assert f"{path}, row {row}: the image is missing" in str(caught.value)
    facts = pack("lenient", skip_bad=True)
    assert facts["skipped"] == 3 and facts["splits"]["train"]["rows"] == ROWS - 3
    ranges, labels = read_pack(str(tmp_path / "lenient")).splits["train"]
    kept = [row for row in range(ROWS) if row not in (3, 4, 9)]
    assert [*ranges] == [IMAGES[row] for row in kept]
    assert labels.tolist() == [LABELS[row] for row in kept]


# Names of files


@pytest.mark.parametrize("name", slow_but(["a.pq", "a.Arrow", "a.FEATHER"], ["a.Arrow"]))
def test_endings_are_known_in_any_letters(tmp_path, name):
    path = put_table(tmp_path / "rows" / name, table()) if name != "a.FEATHER" else None
    if path is None:
        path = put_table(tmp_path / "rows" / "a.feather", table()).rename(tmp_path / "rows" / name)
    put(tmp_path / "rows/README.md", "text")
    put(tmp_path / "rows/more/b.txt", "text")
    put(tmp_path / "rows/LICENSE", "text")
    for path_or_folder in (path, tmp_path / "rows"):
        assert source_of(str(path_or_folder)) == "table"
        assert [*read_tables(path_or_folder).splits["train"][0]] == IMAGES
    unread = {".md": 1, ".txt": 1, "no suffix": 1}
    assert read_tables(tmp_path / "rows").about.unread == unread


def test_one_shard_of_a_pack_is_a_table_of_its_own(tmp_path):
    path = put_table(tmp_path / "rows/train.parquet", table())
    result = call(path.parent, tmp_path / "pack", "--name", "table")
    assert "files that are not read" not in result.stderr
    put(path.parent / "notes.txt", "text")
    result = call(path.parent, tmp_path / "other", "--name", "table")
    assert "files that are not read: .txt 1" in result.stderr
    (shard,) = (tmp_path / "pack").glob("train-0*.arrow")
    (tmp_path / "pack/train-index.arrow").unlink()
    assert [*read_tables(shard).splits["train"][0]] == IMAGES


def test_validation_tables_beside_test_tables_are_counted(tmp_path):
    for name in ("train", "test", "val"):
        put_table(tmp_path / f"{name}.parquet", table())
    assert read_tables(tmp_path).about.unread == {".parquet": 1}


@pytest.mark.parametrize("name", ["table"])
def test_a_missing_path_is_refused_alike_for_every_source(tmp_path, name):
    with pytest.raises(DataError, match=r"gone: there is no such file or folder"):
        SOURCES[name](str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone: there is no such file or folder"):
        SOURCES[name](tmp_path / "gone")
