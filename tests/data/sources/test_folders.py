"""Image files in one folder per class: which of them count, of which class, and in which order."""

import os
import socket

import numpy as np
import pytest

from raykd.core.errors import DataError
from raykd.data.sources import SOURCES
from raykd.data.sources.files import Files
from raykd.data.sources.folders import Tree, check_classes, read_folder
from tests.data.files import encoded, picture, pixels, put, refusal
from tests.each import each
from tests.tiers import slow_but


def names(root) -> list[str]:
    """The image files below a root."""
    return [entry.name for entry in Tree.of(Files.at(root)).images]


@pytest.mark.slow
def test_hidden_files_are_no_images(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png", "b/deep/3.png"):
        put(tmp_path / name)
    for name in ("._1.png", "b/._2.png", "b/.2.png", "b/.cache/4.png", "b/__MACOSX/5.png"):
        put(tmp_path / name, b"what macOS knows of a file")
    assert SOURCES["folder"](tmp_path).splits["train"].labels.tolist() == [0, 1, 1, 1]
    assert pixels(SOURCES["folder"](tmp_path)).shape == (4, 6, 8, 3)


def test_hidden_folders_are_no_classes(tmp_path):
    for name in ("train/a/1.png", "train/c/1.png", "train/.b/1.png", "train/__MACOSX/1.png"):
        put(tmp_path / name)
    for name in ("test/__MACOSX/1.png", "test/a/1.png"):
        put(tmp_path / name)
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.names == ("a", "c")
    assert dataset.splits["test"].labels.tolist() == [0]


def test_a_class_with_hidden_files_alone_is_empty(tmp_path):
    put(tmp_path / "a/1.png")
    put(tmp_path / "b/._1.png")
    assert refusal("folder", tmp_path).startswith(f"{tmp_path / 'b'}: the class folder holds no im")


def test_a_folder_with_the_suffix_of_an_image_is_a_folder(tmp_path):
    put(tmp_path / "a/old.png/1.png")
    assert names(tmp_path) == ["a/old.png/1.png"]


def test_a_link_is_the_file_that_it_points_to(tmp_path):
    put(tmp_path / "files/x.png", encoded(picture(3)))
    for name in ("1.png", "2.png"):
        put(tmp_path / "data/b/1.png")
        (tmp_path / "data/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/a" / name).symlink_to(tmp_path / "files/x.png")
    assert np.array_equal(pixels(SOURCES["folder"](tmp_path / "data"))[1], np.asarray(picture(3)))
    dataset = SOURCES["folder"](tmp_path / "data")
    (tmp_path / "files/x.png").unlink()
    with pytest.raises(DataError) as error:  # it was there when it was listed
        pixels(dataset)
    assert str(error.value) == (
        f"{tmp_path / 'data/a/1.png'}: cannot be read (No such file or directory)"
    )


def test_several_starts_follow_one_another(tmp_path):
    for name in ("one/b/1.png", "two/a/1.png", "two/b/1.png"):
        put(tmp_path / name)
    samples = Tree.of(Files.at(tmp_path)).samples(["one/", "two/"], ["a", "b"])
    assert samples.labels.tolist() == [1, 0, 1]
    assert [samples.images.origin(row) for row in range(3)] == [
        str(tmp_path / name) for name in ("one/b/1.png", "two/a/1.png", "two/b/1.png")
    ]


def test_class_folders_are_those_that_are_expected(tmp_path):
    for name in ("a", "b", ".c"):
        (tmp_path / "train" / name).mkdir(parents=True)
    tree = Tree.of(Files.at(tmp_path))
    check_classes(tree, "train/", ["a", "b"], "list.txt")
    with pytest.raises(DataError) as error:
        check_classes(tree, "train/", ["a", "b", "c"], "list.txt")
    assert str(error.value) == (
        f"{tmp_path / 'train/c'}: there is no such folder, but list.txt has this class"
    )
    with pytest.raises(DataError) as error:
        check_classes(tree, "train/", ["b"], "list.txt")
    assert str(error.value) == f"{tmp_path / 'train/a'}: list.txt has no class of this name"


# What is listed


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "away/deep/1.png")
    put(tmp_path / "data/a/1.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "away")
    (tmp_path / "data/a/more").symlink_to("../../away/deep")
    (tmp_path / "data/a/again").symlink_to("../../data")
    (tmp_path / "away/up").symlink_to("..")
    (tmp_path / "data/a/self").symlink_to("self")
    listing = Files.at(tmp_path / "data").listing()
    names = {entry.name for entry in listing.entries}
    assert {"a/1.png", "a/more/1.png", "b/deep/1.png"} <= names
    assert {"a/again", "a/self"} <= {*listing.others}
    assert len(names) < 20


def test_what_is_no_regular_file_is_listed_and_never_opened(tmp_path):
    put(tmp_path / "a/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/device.png").symlink_to("/dev/zero")
    (tmp_path / "a/gone.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(tmp_path / "a", os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{here}/s.png")
        os.close(here)
        listing = Files.at(tmp_path).listing()
    assert [entry.name for entry in listing.entries] == ["a/1.png"]
    others = ["a/device.png", "a/gone.png", "a/pipe.png", "a/s.png"]
    assert listing.others == others
    with pytest.raises(DataError, match=r"pipe\.png: cannot be read \(not a regular file\)"):
        Files.at(tmp_path).read("a/pipe.png")


def test_a_url_of_this_machine_lists_the_folder_that_it_names(tmp_path):
    put(tmp_path / "a b/1.png")
    (tmp_path / "a b/more").symlink_to("../elsewhere")
    put(tmp_path / "elsewhere/2.png")
    url = f"file://{tmp_path}".replace(" ", "%20")
    assert names(f"{url}/a%20b") == names(tmp_path / "a b") == ["1.png", "more/2.png"]


def test_every_suffix_of_an_image_counts_in_any_letters(tmp_path):
    kinds = {"jfif": "JPEG", "JPE": "JPEG", "gif": "GIF", "TIFF": "TIFF", "WebP": "WEBP"}
    for number, (suffix, kind) in enumerate(kinds.items()):
        put(tmp_path / "a" / f"{number}.{suffix}", encoded(picture(number), kind))
        put(tmp_path / "b" / f"{number}.png")
    put(tmp_path / "b/x.heic", b"not read")
    put(tmp_path / "b/notes", b"not read")
    tree = Tree.of(Files.at(tmp_path))
    assert len(tree.images) == 10 and pixels(SOURCES["folder"](tmp_path)).shape[0] == 10
    assert tree.unread == {".heic": 1, "no suffix": 1}


# Which folders are splits, and which are classes


def fill(root, *folders: str) -> None:
    for number, folder in enumerate(folders):
        put(root / folder / "1.png", encoded(picture(number)))


@each(
    ("train", "test"),
    [("training", "testing"), ("TRAIN", "Validation")],
)
def test_words_for_splits_are_known_in_any_letters(tmp_path, train, test):
    fill(tmp_path, f"{train}/a", f"{train}/b", f"{test}/b")
    dataset = SOURCES["folder"](tmp_path)
    assert (dataset.names, dataset.about.test) == (("a", "b"), f"{test}/")
    assert dataset.splits["test"].labels.tolist() == [1]


def test_test_images_come_from_test_before_validation_and_the_rest_is_counted(tmp_path):
    fill(tmp_path, "train/a", "train/b", "val/a", "Test/a", "extra/c", "test_set/d")
    put(tmp_path / "train/loose.png")
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.about.test == "Test/"
    assert dataset.about.unread == {
        "in val/": 1,
        "in extra/": 1,
        "in test_set/": 1,
        "images in no class folder": 1,
    }


def test_a_test_folder_without_labels_gives_way_to_validation(tmp_path):
    fill(tmp_path, "train/a", "train/b", "val/a", "test")
    assert SOURCES["folder"](tmp_path).about.test == "val/"


def test_a_gallery_is_the_training_images_and_queries_may_be_of_other_classes(tmp_path):
    fill(tmp_path, "Gallery/b", "Gallery/c", "query/a", "query/c")
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.names == ("a", "b", "c")
    assert dataset.labels["train"].tolist() == [1, 2]
    assert dataset.labels["test"].tolist() == [0, 2]
    # Without labels all images are alike.
    assert {*SOURCES["folder"](tmp_path, labels=False).splits} == {"train"}


def test_distractors_are_of_no_person_and_in_any_folders(tmp_path):
    fill(tmp_path, "Probes/ann", "Probes/bob", "distractors", "distractors/a/b", "elsewhere")
    found = read_folder(str(tmp_path))
    assert found.names == ("ann", "bob", "distractors/")
    train, test = found.splits["train"], found.splits["test"]
    assert {*train.labels.tolist()} == {2} and {*test.labels.tolist()} == {0, 1}
    assert len(train.labels) == len(test.labels)
    assert found.about.unread == {"in elsewhere/": 1}
    fill(tmp_path / "classes", "probes", "distractors")
    assert SOURCES["folder"](tmp_path / "classes").names == ("distractors", "probes")
    fill(tmp_path / "none", "probes/ann", "probes/bob")
    (tmp_path / "none" / "distractors").mkdir()
    assert "distractors: the folder holds no image" in refusal("folder", tmp_path / "none")


def test_a_class_may_be_called_gallery_where_it_has_images(tmp_path):
    fill(tmp_path, "gallery", "gallery/old", "kitchen")
    assert SOURCES["folder"](tmp_path).names == ("gallery", "kitchen")


def test_a_class_may_be_called_as_a_split(tmp_path):
    fill(tmp_path, "bus", "train", "tram")
    assert SOURCES["folder"](tmp_path).names == ("bus", "train", "tram")
    fill(tmp_path, "test")
    assert len(SOURCES["folder"](tmp_path).names) == 4


REFUSED = {
    "a gallery without queries": (
        ("gallery/a", "gallery/b", "queries/a"),
        "gallery holds folders of images, and there is no folder query beside it that does",
    ),
    "queries without a gallery": (
        ("query/a", "query/b", "gallery"),
        "there is no folder gallery beside it that does; expected gallery and query",
    ),
    "a gallery and queries without classes": (
        ("Gallery", "query"),
        "Gallery, query hold images and no folders, so nothing says what a query is to find",
    ),
    "a gallery of one class": (("gallery/a", "query/a"), "all images are of one class"),
    "two folders of training images": (("Train/a", "training/a"), "keep one of them"),
    "only words for splits": (("train", "test"), "are words for splits; expected one folder"),
    "splits without training": (("test/a", "val/a"), "are words for splits"),
    "folders that look like splits": (
        ("seg_train/x", "seg_train/y", "seg_test/x"),
        "look like splits; rename them to train and test",
    ),
    "one class": (("train/a", "test/a"), "all images are of one class, a, which leaves nothing"),
    "a path one level too high": (
        ("data/train/a", "data/train/b", "data/test/a"),
        "data holds the folders test, train, so give data.path=",
    ),
    "a test class that is not trained on": (
        ("train/a", "train/b", "val/c"),
        "c: no class of this name is in",
    ),
}


@each(
    "what",
    slow_but(REFUSED, [*REFUSED][1:9:2]),
)
def test_another_layout_is_refused_with_what_is_there(tmp_path, what):
    folders, message = REFUSED[what]
    fill(tmp_path, *folders)
    assert message in refusal("folder", tmp_path)


def test_names_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    fill(tmp_path, *map(str, range(12)))
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.names == tuple(map(str, range(12)))
    assert dataset.splits["train"].labels.tolist() == [*range(12)]
    assert dataset.splits["train"].images.origin(2) == str(tmp_path / "2/1.png")
    assert read_folder(str(tmp_path)).names == dataset.names


def test_numbers_with_zeros_keep_their_text_and_other_names_are_texts(tmp_path):
    fill(tmp_path / "numbers", "007", "10", "9")
    assert SOURCES["folder"](tmp_path / "numbers").names == ("007", "9", "10")
    fill(tmp_path / "mixed", "10", "9", "x")
    assert SOURCES["folder"](tmp_path / "mixed").names == ("10", "9", "x")


def test_names_that_are_no_text_become_text(tmp_path):
    fill(tmp_path, "caf\udce9", "b\x1b[31m")
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.names == ("b\x1b[31m", r"caf\xe9")
    assert dataset.splits["train"].images.origin(0) == f"{tmp_path}/b\\x1b[31m/1.png"
    assert dataset.splits["train"].images.origin(1) == f"{tmp_path}/caf\\xe9/1.png"
    assert pixels(dataset).shape == (2, 6, 8, 3)
