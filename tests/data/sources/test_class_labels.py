"""Labels and class names: one numbering for a whole dataset, whatever wrote its parts."""

import contextlib
import json
import os
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.core.errors import DataError
from raykd.data.sources import SOURCES
from raykd.data.sources.class_labels import number_labels, parse_names, sort_names
from raykd.data.sources.tars import read_webdataset
from tests.data.files import put
from tests.data.packs import IMAGES, put_table, put_tar, samples, table
from tests.each import each
from tests.tiers import slow_but


def origin(row):
    return f"row {row}"


def number(train, test=(), names=()):
    """Class names, and the classes of training and test labels."""
    splits = {"train": (train, origin)} | ({"test": (test, origin)} if test else {})
    names, columns = number_labels(splits, names)
    return names, [columns[split].tolist() for split in splits]


def test_names_are_in_the_order_of_numbers_where_all_are_numbers():
    assert sort_names(["10", "9", "2", "10"]) == ("2", "9", "10")
    assert sort_names(["1", "-1", "+3"]) == ("-1", "1", "+3")
    assert sort_names(["007", "7", "11"]) == ("007", "7", "11")
    assert sort_names(["10", "9", "cat"]) == ("10", "9", "cat")
    assert sort_names(["\u0663", "12", "2"]) == ("12", "2", "\u0663")  # digits of another script
    assert sort_names([]) == ()


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=60), st.randoms(use_true_random=False))
def test_integers_and_their_texts_are_one_class(labels, rng):
    mixed = [str(label) if rng.random() < 0.5 else label for label in labels]
    if any(isinstance(label, int) for label in mixed):
        assert number(mixed) == number(labels)
    assert number(labels, [str(label) for label in labels])[1] == [labels, labels]


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.lists(st.integers(-50, 10**17).map(str), min_size=1, max_size=30))
def test_texts_of_integers_alone_are_names_in_the_order_of_numbers(labels):
    names, (numbers,) = number(labels)
    assert [names[index] for index in numbers] == labels
    assert list(names) == sorted(set(labels), key=int)


def test_integers_and_other_texts_are_refused_with_the_first_row_of_the_other_kind():
    with pytest.raises(DataError, match=r"^row 2: the label is the text 'cat', but that of row 0"):
        number([0, 1, "cat", 1, "dog"])
    with pytest.raises(DataError, match=r"^row 3: the label is an integer, but that of row 1"):
        number(["4", "cat", "dog", 3])
    with pytest.raises(DataError, match=r"^row 0: the label is the text 'a', but that of row 0"):
        number([0, 1], ["a", "b"])


def test_declared_names_say_which_number_a_text_has():
    assert number([0, "dog", 2], names=("cat", "dog", "owl")) == (
        ("cat", "dog", "owl"),
        [[0, 1, 2]],
    )
    assert number(["2", 0], names=("cat", "dog", "owl"))[1] == [[2, 0]]
    assert number(["3", "1"], names=("3", "1", "2"))[1] == [[0, 1]]
    with pytest.raises(DataError, match=r"row 1: .* the text '1'"):  # class 0, or class 1?
        number([0, "1"], names=("1", "2"))
    with pytest.raises(DataError, match=r"row 0: label 'crane' names two classes"):
        number(["crane"], names=("crane", "dog", "crane"))
    assert number([2], names=("crane", "dog", "crane"))[1] == [[2]]


@each("label", [1.0, None, b"cat", {"a": 1}, "a" * 9 + "\udbff"])
def test_what_is_neither_an_integer_nor_a_text_is_no_label(label):
    for names in ((), ("a", "b")):
        with pytest.raises(DataError, match=r"^row 1: label .* is no class"):
            number([0, label], names=names)


@each("label", [2**63, -(2**70), 10**5000, "9" * 18], ids=lambda label: "large")
def test_a_number_beyond_the_classes_is_refused_however_large(label):
    with pytest.raises(DataError, match=r"^row 1: label .* is out of range") as caught:
        number([0, label])
    assert len(str(caught.value)) < 200
    with pytest.raises(DataError, match=r"^row 0: label .* is out of range"):
        number([0, 1], [label])


def test_a_label_of_an_unknown_class_says_so():
    with pytest.raises(DataError, match="-1 often marks images whose class is unknown"):
        number([0, 1], [-1, -1])


def test_a_message_does_not_list_a_thousand_classes():
    with pytest.raises(DataError, match=r"there are 0, 1, .*, 19, \.\.\. \(1000 in all\)"):
        number(["x"], names=tuple(map(str, range(1000))))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20)
@given(JSON)
def test_any_json_declares_names_or_is_refused(value):
    names: tuple[str, ...] | None = None
    with contextlib.suppress(DataError):
        names = parse_names(value, "here")
    assert names is None or (names and all(isinstance(name, str) for name in names))


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=12, unique=True), st.randoms())
def test_the_three_ways_to_declare_names_are_equal(names, rng):
    pairs = [*enumerate(names)]
    rng.shuffle(pairs)
    texts = [name for name in names if name.encode("utf-8", "replace").decode() == name]
    if len(texts) == len(names):
        for value in (names, {str(n): name for n, name in pairs}, {name: n for n, name in pairs}):
            assert parse_names(value, "here") == tuple(names)


# In files


@pytest.mark.parametrize("where", ["train", pytest.param("test", marks=pytest.mark.slow)])
def test_tables_of_two_writers_have_one_numbering(tmp_path, where):
    rows = list(range(20))
    random.Random(1).shuffle(rows)
    labels = [row % 12 for row in rows]
    put_table(tmp_path / "train-0.parquet", table(IMAGES[:20], labels))
    texts = table(IMAGES[:20], [str(label) for label in labels])
    put_table(tmp_path / f"{where}-1.PQ", texts)
    dataset = SOURCES["table"](tmp_path)
    assert dataset.names == tuple(map(str, range(12)))
    assert dataset.splits[where].labels[-20:].tolist() == labels


@each("kinds", [("json", "text"), ("cls", "txt"), ("txt", "json")])
def test_tar_shards_of_two_writers_have_one_numbering(tmp_path, kinds):
    how = {
        "json": lambda row: {"json": json.dumps({"label": row % 11})},
        "text": lambda row: {"json": json.dumps({"label": str(row % 11)})},
        "cls": lambda row: {"cls": f"\ufeff{row % 11}\r\n"},
        "txt": lambda row: {"txt": f" {row % 11}\n"},
    }
    put_tar(tmp_path / "train-0.tar", samples(range(11), how[kinds[0]]))
    put_tar(tmp_path / "train-1.TAR", samples(range(11, 22), how[kinds[1]]))
    put_tar(tmp_path / "test.tar", samples(range(3, 6), how[kinds[1]]))
    dataset = read_webdataset(str(tmp_path))
    assert dataset.names == tuple(map(str, range(11)))
    assert dataset.splits["train"][1].tolist() == [row % 11 for row in range(22)]
    assert dataset.splits["test"][1].tolist() == [3, 4, 5]


def test_a_mix_in_files_names_the_file_and_the_row(tmp_path):
    put_table(tmp_path / "train-0.parquet", table(IMAGES[:3], ["a", "b", "a"]))
    file = put_table(tmp_path / "train-1.parquet", table(IMAGES[:3], [0, 1, 0]))
    with pytest.raises(DataError, match=rf"^{file}, row 0: the label is an integer, but that of "):
        SOURCES["table"](tmp_path)


KINDS = {
    "large integers": pa.array([2**40, 0, 1]),
    "uint64": pa.array([2**64 - 1, 0, 1], pa.uint64()),
    "floats": pa.array([0.0, 1.0, 1.0]),
    "halves": pa.array(np.array([0, 1, 1], np.float16)),
    "nothing": pa.nulls(3),
    "lists": pa.array([[0], [1], [1]]),
    "structs": pa.array([{"a": 0}] * 3),
    "maps": pa.array([[("a", 0)]] * 3, pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"a", b"b", b"b"]),
    "dates": pa.array([0, 1, 1], pa.date32()),
    "missing": pa.array([0, None, 1]),
    "missing in a dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
}


@each("name", slow_but(["a.parquet", "a.arrow"], ["a.parquet"]))
@each("kind", slow_but(KINDS, ["uint64", "bytes", "missing"]))
def test_a_column_that_holds_no_labels_is_refused_with_its_row(tmp_path, kind, name):
    file = put_table(tmp_path / name, table(IMAGES[:3], KINDS[kind]))
    message = r"the label is missing|label .* (is no class; expected|is out of range)"
    with pytest.raises(DataError, match=rf"^{file}, row \d: ({message})"):
        SOURCES["table"](tmp_path)


USUAL = {
    "bools": pa.array([False, True, True]),
    "small": pa.array([0, 1, 1], pa.uint8()),
    "words": pa.array(["a", "b", "b"], pa.large_string()),
    "views": pa.array(["a", "b", "b"], pa.string_view()),
    "a dictionary": pa.array(["a", "b", "b"]).dictionary_encode(),
}


@each("name", slow_but(["a.parquet", "a.arrow"], ["a.parquet"]))
@each("kind", slow_but(USUAL, ["bools", "a dictionary"]))
def test_integers_and_texts_of_any_width_are_labels(tmp_path, kind, name):
    put_table(tmp_path / name, table(IMAGES[:3], USUAL[kind]))
    assert SOURCES["table"](tmp_path).splits["train"].labels.tolist() == [0, 1, 1]


# What is declared


def hub(names) -> dict:
    return {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}


NOTHING = [
    {"huggingface": json.dumps(None)},
    {"huggingface": json.dumps({"info": None})},
    {"huggingface": json.dumps({"info": {}})},
    {"huggingface": json.dumps({"info": {"features": None}})},
    {"huggingface": json.dumps({"info": {"features": {"label": None}}})},
    {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
    {"huggingface": json.dumps(hub(None))},
    {"huggingface": json.dumps({"info": {"features": {"fine_label": {"names": ["x"]}}}})},
    {"classes": b""},
    {"classes": b"null"},
]


@each("metadata", slow_but(NOTHING, NOTHING[:9:4]), ids=repr)
def test_metadata_that_declare_nothing_are_passed_over(tmp_path, metadata):
    content = table(IMAGES[:3], [0, 1, 1]).replace_schema_metadata(metadata)
    put_table(tmp_path / "a.parquet", content)
    assert SOURCES["table"](tmp_path).names == ("0", "1")


WRONG = [
    {"huggingface": b"{"},
    {"huggingface": b"\xff\xfe"},
    {"huggingface": b"[" * 100_000},
    {"huggingface": json.dumps([])},
    {"huggingface": json.dumps("text")},
    {"huggingface": json.dumps({"info": [1]})},
    {"huggingface": json.dumps({"info": {"features": "label"}})},
    {"huggingface": json.dumps({"info": {"features": {"label": 3}}})},
    {"huggingface": json.dumps(hub([1, 2]))},
    {"huggingface": json.dumps(hub("yes"))},
    {"huggingface": json.dumps(hub(["\ud800", "b"]))},
    {"classes": b"[oops"},
    {"classes": b"[1, 2, 3]"},
    {"classes": b'["a", null]'},
    {"classes": b"[" * 100_000},
    {"classes": b"[1" + b"0" * 10_000 + b"]"},
    {"classes": b"caf\xe9,b,c"},
    {"classes": b'{"a": {}}'},
]


@each("metadata", slow_but(WRONG, WRONG[::6]), ids=lambda wrong: repr(wrong)[:60])
def test_metadata_that_cannot_be_read_are_named(tmp_path, metadata):
    content = table(IMAGES[:3], [0, 1, 1]).replace_schema_metadata(metadata)
    file = put_table(tmp_path / "a.parquet", content)
    with pytest.raises(DataError, match=rf"^{file}, `{next(iter(metadata))}` in its metadata") as e:
        SOURCES["table"](tmp_path)
    assert len(str(e.value)) < 400


def test_tables_that_declare_different_names_are_refused(tmp_path):
    for name, names in (("train", "a,b"), ("test", "b,a")):
        content = table(IMAGES[:3], [0, 1, 1]).replace_schema_metadata({"classes": names})
        put_table(tmp_path / f"{name}.parquet", content)
    with pytest.raises(DataError, match=r"test\.parquet: names \['b', 'a'\] as classes, but .*tr"):
        SOURCES["table"](tmp_path)


def test_a_declared_class_without_images_is_kept(tmp_path):
    metadata = {"huggingface": json.dumps(hub(["w", "x", "y", "z", "never"]))}
    content = table(IMAGES[:8], [0, 1, 2, 3] * 2).replace_schema_metadata(metadata)
    put_table(tmp_path / "tables/train.parquet", content)
    assert SOURCES["table"](tmp_path / "tables").names == ("w", "x", "y", "z", "never")
    put_tar(tmp_path / "tars/train.tar", samples(range(6)))
    put(tmp_path / "tars/classes.txt", "a\nb\nc\nnever\n")
    assert read_webdataset(str(tmp_path / "tars")).names == ("a", "b", "c", "never")


TEXTS = {
    b"cat\r\ndog\r\nowl\r\n": ("cat", "dog", "owl"),
    b"\xef\xbb\xbfcat\ndog\nowl": ("cat", "dog", "owl"),
    "caf\u00e9\nb\nc\n".encode(): ("caf\u00e9", "b", "c"),
}


@pytest.mark.parametrize("data", slow_but(TEXTS, [*TEXTS][1:2]))
def test_names_beside_shards_may_be_written_by_any_editor(tmp_path, data):
    put_tar(tmp_path / "train.tar", samples(range(6)))
    put(tmp_path / "classes.txt", data)
    assert read_webdataset(str(tmp_path)).names == TEXTS[data]


@pytest.mark.parametrize("data", ["caf\u00e9\nb\nc\n".encode("latin-1")])
def test_names_beside_shards_in_another_encoding_are_named(tmp_path, data):
    put_tar(tmp_path / "train.tar", samples(range(6)))
    put(tmp_path / "classes.txt", data)
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as text, expected UTF-8"):
        read_webdataset(str(tmp_path))


@each(
    "data",
    [
        b"null", b'{"a": true, "b": 1}', b'{"0": "a", "2": "b"}', b'["a", ["b"]]', b"[" * 100_000,
        b'["\\ud800"]',
    ],
)  # fmt: skip
def test_names_in_json_of_another_shape_are_named(tmp_path, data):
    put_tar(tmp_path / "train.tar", samples(range(6)))
    put(tmp_path / "classes.json", data)
    with pytest.raises(DataError, match=r"classes\.json: (expected a list of|cannot be read as)"):
        read_webdataset(str(tmp_path))


def test_names_that_stand_for_bytes_are_texts():
    assert parse_names([os.fsdecode(b"caf\xe9")], "here") == (os.fsdecode(b"caf\xe9"),)
