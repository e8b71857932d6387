"""Image files in one folder per class: which of them count, and in which order."""

import numpy as np
import pytest

from raykd.data.folders import check_classes, class_folders, class_names, image_files
from raykd.data.sources import SOURCES
from raykd.errors import DataError
from tests.data.files import encoded, picture, pixels, put, refusal


def test_hidden_files_are_no_images(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png", "b/deep/3.png"):
        put(tmp_path / name)
    for name in ("._1.png", "b/._2.png", "b/.2.png", "b/.cache/4.png", "b/__MACOSX/5.png"):
        put(tmp_path / name, b"what macOS knows of a file")
    assert SOURCES["folder"](tmp_path).splits["train"].labels.tolist() == [0, 1, 1, 1]
    assert pixels(SOURCES["folder"](tmp_path)).shape == (4, 6, 8, 3)


def test_hidden_folders_are_no_classes(tmp_path):
    for name in ("train/a/1.png", "train/.b/1.png", "train/__MACOSX/1.png", "test/__MACOSX/1.png"):
        put(tmp_path / name)
    put(tmp_path / "test/a/1.png")
    found = SOURCES["folder"](tmp_path)
    assert found.names == ("a",)
    assert found.splits["test"].labels.tolist() == [0]


def test_a_class_with_hidden_files_alone_is_empty(tmp_path):
    put(tmp_path / "a/1.png")
    put(tmp_path / "b/._1.png")
    assert refusal("folder", tmp_path).startswith(f"{tmp_path / 'b'}: the class folder holds no im")


def test_a_folder_with_the_suffix_of_an_image_is_a_folder(tmp_path):
    put(tmp_path / "a/old.png/1.png")
    assert image_files(tmp_path / "a") == [tmp_path / "a/old.png/1.png"]


def test_a_folder_that_is_not_there_has_no_images(tmp_path):
    assert image_files(tmp_path / "a") == []


def test_a_link_is_the_file_that_it_points_to(tmp_path):
    put(tmp_path / "files/x.png", encoded(picture(3)))
    for name in ("1.png", "2.png"):
        (tmp_path / "data/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/a" / name).symlink_to(tmp_path / "files/x.png")
    assert np.array_equal(pixels(SOURCES["folder"](tmp_path / "data"))[1], np.asarray(picture(3)))
    (tmp_path / "files/x.png").unlink()
    assert refusal("folder", tmp_path / "data") == (
        f"{tmp_path / 'data/a/1.png'}: cannot be read (No such file or directory)"
    )


def test_several_roots_follow_one_another(tmp_path):
    for name in ("one/b/1.png", "two/a/1.png", "two/b/1.png"):
        put(tmp_path / name)
    samples = class_folders([tmp_path / "one", tmp_path / "two"], ["a", "b"])
    assert samples.labels.tolist() == [1, 0, 1]
    assert [samples.origin(row) for row in range(3)] == [
        str(tmp_path / name) for name in ("one/b/1.png", "two/a/1.png", "two/b/1.png")
    ]


def test_class_folders_are_those_that_are_expected(tmp_path):
    for name in ("a", "b", ".c"):
        (tmp_path / name).mkdir()
    check_classes(tmp_path, class_names(tmp_path), "list.txt")
    with pytest.raises(DataError) as error:
        check_classes(tmp_path, ["a", "b", "c"], "list.txt")
    assert str(error.value) == (
        f"{tmp_path / 'c'}: there is no such folder, but list.txt has this class"
    )
    with pytest.raises(DataError) as error:
        check_classes(tmp_path, ["b"], "list.txt")
    assert str(error.value) == f"{tmp_path / 'a'}: list.txt has no class of this name"
    with pytest.raises(DataError, match=r"there is no such folder; list\.txt names 2 classes"):
        check_classes(tmp_path / "x", ["a", "b"], "list.txt")
