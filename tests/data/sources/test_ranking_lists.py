"""Lists of what queries are to find: what is read, kept as class names, and refused."""

from pathlib import Path

import pytest
import torch

from raykd.core.errors import DataError
from raykd.data.sources import SOURCES
from raykd.data.sources.relevance import pairs_of
from tests.data.files import encoded, names, picture, put
from tests.each import each

LIST = (
    "query,relevance,gallery\n"
    "asked/1.png,relevant,shop/a.png\n"
    "asked/1.png,junk,shop/b.png\n"
    "\n"
    "asked/0.png,relevant,shop/a.png\n"
    "asked/0.png, Relevant, shop/c.png\n"
    "shop/c.png,relevant,shop/b.png\n"
)


@pytest.fixture
def place(tmp_path) -> Path:
    files = ("asked/0.png", "asked/1.png", "shop/a.png", "shop/b.png", "shop/c.png", "shop/d.png")
    for number, name in enumerate(files):
        put(tmp_path / name, encoded(picture(number)))
    put(tmp_path / "rankings.csv", LIST)
    return tmp_path


def test_a_list_says_by_class_names_what_is_relevant_and_what_junk(place):
    dataset = SOURCES["rankings"](place)
    assert names(dataset, "test") == ["1.png", "0.png", "c.png"]
    # A query that a line names as one of the gallery is there, and junk to itself.
    assert names(dataset, "train") == ["a.png", "b.png", "c.png", "d.png"]
    assert dataset.names == (
        "relevant: 0 1", "relevant: 2; junk: 0", "relevant: 1; junk: 2", "irrelevant",
    )  # fmt: skip
    relevant, junk = pairs_of(dataset.names, torch.from_numpy(dataset.labels["train"]))
    assert relevant.tolist() == [[0, 0], [1, 0], [1, 2], [2, 1]]
    assert junk.tolist() == [[0, 1], [2, 2]]
    none, _ = pairs_of(["irrelevant"], torch.zeros(3, dtype=torch.int64))
    assert none.shape == (0, 2)


def test_a_folder_called_gallery_is_the_gallery_with_what_lines_name(place):
    for name in ("asked/2.png", "gallery/e.png"):
        put(place / name, encoded(picture(9)))
    dataset = SOURCES["rankings"](place)
    assert names(dataset, "train") == ["e.png", "a.png", "b.png", "c.png"]
    assert dataset.about.unread == {"images neither in gallery/ nor in the list": 2}


def test_a_list_is_told_from_another_of_the_same_images(place):
    before = SOURCES["rankings"](place / "rankings.csv")
    assert SOURCES["rankings"](place).stamp == before.stamp
    put(place / "rankings.csv", LIST.replace("junk", "relevant"))
    after = SOURCES["rankings"](place)
    assert after.stamp != before.stamp and after.names != before.names


@each(
    ("old", "new", "words"),
    [
        ("shop/a.png", "shop/x.png", r"2 lines cannot be used:\n  line 2: there is no image"),
        ("asked/1.png,junk", "asked/9.png,junk", r"line 3: there is no image 'asked/9\.png'"),
        ("junk", "maybe", "line 3: expected the path of a query, relevant or junk"),
        ("asked/1.png,junk,shop/b.png", "a,b", "line 3: expected the path of a query"),
        ("junk,shop/b.png", "junk,shop/a.png", r"line 2: shop/a\.png is relevant to .* otherwise"),
        (
            "relevant,shop/b.png",
            "relevant,shop/c.png",
            r"line 7: shop/c\.png is not to find itself",
        ),
        ("elevant,", "unk,", "line 2: expected the path of a query"),
    ],
)
def test_lines_that_cannot_be_used_are_named(place, old, new, words):
    put(place / "rankings.csv", LIST.replace(old, new))
    with pytest.raises(DataError, match=words):
        SOURCES["rankings"](place)


def test_a_list_without_a_relevant_image_or_no_list_is_refused(place):
    put(place / "rankings.csv", "asked/0.png,junk,shop/a.png\n")
    with pytest.raises(DataError, match="no line says relevant"):
        SOURCES["rankings"](place)
    with pytest.raises(DataError, match=r"expected rankings\.csv, found none; give the path"):
        SOURCES["rankings"](place / "shop")
