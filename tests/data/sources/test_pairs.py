"""Lists of pairs of faces: LFW's layout, CSV files, and lines that are refused."""

from pathlib import Path

import pytest

from raykd.core.errors import DataError
from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.data.sources import SOURCES
from raykd.data.sources.pairs import folds_of
from raykd.storage.store import Store
from tests.data.files import encoded, names, picture, put
from tests.each import each

LFW = (
    "2\t1\n"
    "Ann\t1\t2\n"
    "Ann\t1\tBo\t1\n"
    "Bo\t1\t2\n"
    "Cy\t1\tAnn\t2\n"
)  # fmt: skip
CSV = "Ann/a.png,Ann/b.png,same\nAnn/b.png, Bo/a.png,different\nBo/a.png,loose.png,1\n"


@pytest.fixture
def faces(tmp_path) -> Path:
    """Folders of people, some levels below a list like LFW's."""
    for number, name in enumerate(("Ann/Ann_0001", "Ann/Ann_0002", "Bo/Bo_0001", "Bo/Bo_0002")):
        put(tmp_path / "lfw" / f"{name}.png", encoded(picture(number)))
    put(tmp_path / "lfw" / "Cy" / "Cy_0001.jpg", encoded(picture(9), "JPEG"))
    put(tmp_path / "pairs.txt", LFW)
    return tmp_path


def test_a_list_like_lfw_s_is_read_in_its_order(faces):
    dataset = SOURCES["pairs"](faces / "pairs.txt")
    assert dataset.names == ("Ann", "Bo", "Cy")
    assert names(dataset, "train") == [
        "Ann_0001.png", "Ann_0001.png", "Bo_0001.png", "Cy_0001.jpg",
    ]  # fmt: skip
    assert names(dataset, "test") == [
        "Ann_0002.png", "Bo_0001.png", "Bo_0002.png", "Ann_0002.png",
    ]  # fmt: skip
    first, second = dataset.labels["train"], dataset.labels["test"]
    assert (first == second).tolist() == [True, False, True, False]
    assert folds_of(str(faces)) == 2
    assert SOURCES["pairs"](faces).stamp == dataset.stamp
    put(faces / "pairs.txt", LFW.replace("Cy\t1\tAnn\t2", "Cy\t1\tAnn\t1"))
    assert SOURCES["pairs"](faces).stamp != dataset.stamp


def test_a_csv_file_groups_its_people_by_its_pairs(tmp_path):
    for number, name in enumerate(("Ann/a.png", "Ann/b.png", "Bo/a.png", "loose.png")):
        put(tmp_path / name, encoded(picture(number)))
    dataset = SOURCES["pairs"](put(tmp_path / "list.csv", CSV))
    assert dataset.names == ("Ann", "Bo")
    assert dataset.labels["train"].tolist() == [0, 0, 1]
    assert dataset.labels["test"].tolist() == [0, 1, 1]
    assert folds_of(str(tmp_path / "list.csv")) is None
    put(tmp_path / "list.csv", f"{CSV}loose.png,Bo/a.png,different\n")
    with pytest.raises(DataError, match=r"line 4: loose\.png and Bo/a\.png are different"):
        SOURCES["pairs"](tmp_path / "list.csv")


@each(
    ("old", "new", "words"),
    [
        ("Ann\t1\t2", "Ann\t1\t3", r"pairs\.txt, line 2: there is no image Ann/Ann_0003"),
        ("Ann\t1\t2", "Ann\t1\t1", r"line 2: expected two images, found lfw/Ann/Ann_0001\.png"),
        ("Bo\t1\t2", "Bo\tx\t2", "line 4: expected the number of an image of Bo, found 'x'"),
        ("Bo\t1\t2", "Bo\t1\t2\t3", "line 4: expected a name and two numbers"),
        ("Cy\t1\tAnn\t2", "Ann\t1\tAnn\t2", "line 5: expected two people, found 'Ann' twice"),
        ("2\t1\n", "3\t1\n", "which are 6 lines, but 4 follow"),
        ("2\t1\n", "500\n", "line 1: expected the number of folds"),
        ("\t1\t2", "\t1\t7", r"2 lines cannot be used:\n  line 2: .*\n  line 4: .*Bo/Bo_0007"),
    ],
)
def test_lines_that_are_no_pairs_are_named(faces, old, new, words):
    put(faces / "pairs.txt", LFW.replace(old, new))
    with pytest.raises(DataError, match=words):
        SOURCES["pairs"](faces / "pairs.txt")


@each(
    ("text", "words"),
    [
        ("a.png,b.png\n", "line 1: expected two paths, and same or different"),
        ("a.png,b.png,perhaps\n", "line 1: expected two paths, and same or different"),
        ("a.png,c.png,same\n", "line 1: there is no image 'c.png'"),
        (f"a.png,b.png,{'s' * (1 << 18)}\n", "line 1: expected cells with commas between"),
        ("\n", "expected a pair on each line, found none"),
    ],
)
def test_lines_of_a_csv_file_that_are_no_pairs_are_named(tmp_path, text, words):
    put(tmp_path / "a.png"), put(tmp_path / "b.png", encoded(picture(1)))
    with pytest.raises(DataError, match=words):
        SOURCES["pairs"](put(tmp_path / "pairs.csv", text))


@each("stream", [None, {"size": 8}])
def test_an_image_of_a_list_that_cannot_be_used_is_named_once_and_not_left_out(faces, stream):
    put(faces / "lfw" / "Ann" / "Ann_0002.png", b"no image")  # in two lines
    store, data = Store(faces / "store"), Data(name="pairs", stream=stream)
    with pytest.raises(DataError) as caught:
        read(store, data, str(faces / "pairs.txt"))
    assert str(caught.value).count("Ann_0002.png") == 1
    assert "1 image of the list cannot be used" in str(caught.value)
    assert str(caught.value).endswith("replace such images, or take their lines out of the list")


def test_a_folder_has_one_list(tmp_path):
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected pairs\.txt or pairs\.csv, found neither"):
        SOURCES["pairs"](tmp_path)
