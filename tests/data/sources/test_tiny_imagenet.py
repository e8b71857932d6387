"""Tiny-ImageNet in the layout of its archive, with three classes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raykd.data.dataset import open_images, read
from raykd.data.recipe import Data
from raykd.data.sources import SOURCES, published
from tests.data.files import encoded, md5, picture, pixels, put, refusal, serving
from tests.tiers import slow_but

WNIDS = ("n02", "n10", "n01")  # not sorted, as in the real file
BOX = "0\t0\t62\t61"


def jpeg(seed: int) -> Image.Image:
    return picture(seed, 64, 64)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The folder, with two images a class to train on and five to validate with."""
    root = tmp_path / "tiny-imagenet-200"
    put(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in WNIDS))
    put(
        root / "words.txt",
        "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn10\tcrane\n",
    )
    for wnid in WNIDS:
        for number in range(2):
            name = f"{wnid}_{number}.JPEG"
            image = jpeg(number).convert("L") if wnid == "n10" else jpeg(number)
            put(root / "train" / wnid / "images" / name, encoded(image, "JPEG"))
        put(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t{BOX}\n")
    lines = []
    for number, wnid in enumerate(("n10", "n10", "n01", "n02", "n01")):
        put(root / "val/images" / f"val_{number}.JPEG", encoded(jpeg(number), "JPEG"))
        lines.append(f"val_{number}.JPEG\t{wnid}\t{BOX}\n")
    put(root / "val/val_annotations.txt", "".join(lines))
    put(root / "test/images/test_0.JPEG", b"not looked at")
    return root


def annotate(root: Path, line: int, text: str) -> None:
    """Replace a line, counted from 1, of the annotations."""
    file = root / "val/val_annotations.txt"
    lines = file.read_text().splitlines()
    lines[line - 1 : line] = [text]
    file.write_text("\n".join(lines) + "\n")


def test_classes_are_numbered_in_the_sorted_order_of_their_wnids(tiny):
    dataset = SOURCES["tiny_imagenet"](tiny)
    assert dataset.splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.splits["test"].labels.tolist() == [2, 2, 0, 1, 0]
    assert dataset.splits["train"].images.origin(3) == str(tiny / "train/n02/images/n02_1.JPEG")
    assert dataset.splits["test"].images.origin(3) == str(tiny / "val/images/val_3.JPEG")


def test_a_class_is_called_by_its_first_word_where_that_is_its_own(tiny):
    assert SOURCES["tiny_imagenet"](tiny).names == ("goldfish", "n02", "n10")
    (tiny / "words.txt").write_text("n01\t\nn02\towl\n")
    assert SOURCES["tiny_imagenet"](tiny).names == ("n01", "owl", "n10")
    (tiny / "words.txt").unlink()
    assert SOURCES["tiny_imagenet"](tiny).names == ("n01", "n02", "n10")


@pytest.mark.slow
def test_grey_images_get_three_channels(store, tiny):
    data = read(store, Data(name="tiny_imagenet"), tiny)
    train, test = open_images(store, data)
    assert (len(train), len(test), data.size, data.classes) == (6, 5, (64, 64), 3)
    assert (train.pixels[4] == train.pixels[4][..., :1]).all()
    assert not (train.pixels[0] == train.pixels[0][..., :1]).all()
    assert (data.mean, data.std) == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))


@pytest.mark.slow
def test_the_folder_is_found_through_its_parent_and_its_archive(tiny, monkeypatch):
    labels = SOURCES["tiny_imagenet"](tiny.parent).splits["test"].labels
    file = Path(shutil.make_archive(str(tiny), "zip", tiny.parent, tiny.name))
    monkeypatch.setattr(published, "TINY_IMAGENET", replace(published.TINY_IMAGENET, md5=md5(file)))
    for path in (file.parent, file):
        shutil.rmtree(tiny)
        dataset = SOURCES["tiny_imagenet"](path)
        assert dataset.splits["test"].labels.tolist() == labels.tolist()


@pytest.mark.slow
def test_without_a_path_it_is_downloaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path / "downloads"))
    file = Path(
        shutil.make_archive(str(tmp_path / "server" / tiny.name), "zip", tmp_path, tiny.name)
    )
    with serving(file.parent) as server:
        archive = replace(
            published.TINY_IMAGENET, md5=md5(file), urls=(f"{server.address}/{file.name}",)
        )
        monkeypatch.setattr(published, "TINY_IMAGENET", archive)
        dataset = SOURCES["tiny_imagenet"](None)
    assert np.array_equal(pixels(dataset), pixels(SOURCES["tiny_imagenet"](tiny)))


@pytest.mark.slow
def test_its_tables_have_its_constants_unless_the_folder_is_there_too(tiny):
    images = pa.array([encoded(jpeg(0), "JPEG")] * 2, pa.binary())
    tables = tiny.parent / "tables"
    tables.mkdir()
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tables / "train.parquet")
    dataset = SOURCES["tiny_imagenet"](tables)
    assert dataset.names == ("0", "1")
    assert len(SOURCES["tiny_imagenet"](tiny.parent).names) == 3


@pytest.mark.slow
def test_hidden_files_are_left_out(tiny):
    put(tiny / "train/n01/images/._n01_0.JPEG", b"x")
    put(tiny / "val/images/._val_0.JPEG", b"x")
    put(tiny / "train/.DS_Store/x", b"x")
    assert len(SOURCES["tiny_imagenet"](tiny).splits["train"].labels) == 6


BAD_LINES = {
    "no tabs": ("val_1.JPEG n10", "expected a file name, a wnid and a box with tabs between, fo"),
    "nothing": ("", "expected a file name, a wnid and a box with tabs between, found ''"),
    "no wnid": ("val_1.JPEG\t\t0", "expected a file name, a wnid and a box with tabs between"),
    "an unknown class": (f"val_1.JPEG\tn11\t{BOX}", "the class 'n11' is not in "),
    "a missing image": (f"val_9.JPEG\tn10\t{BOX}", "there is no image "),
    "an image outside": (f"../images/val_1.JPEG\tn10\t{BOX}", "there is no image "),
    "an image twice": (f"val_0.JPEG\tn10\t{BOX}", "val_0.JPEG has a line already"),
}


@pytest.mark.parametrize("what", slow_but(BAD_LINES, ["no tabs", "an image outside"]))
def test_a_wrong_annotation_is_named_with_its_line(tiny, what):
    text, problem = BAD_LINES[what]
    annotate(tiny, 2, text)
    message = refusal("tiny_imagenet", tiny)
    assert message.startswith(f"{tiny / 'val/val_annotations.txt'}, line 2: {problem}")


@pytest.mark.slow
def test_an_image_without_an_annotation_is_refused(tiny):
    extra = put(tiny / "val/images/val_5.JPEG")
    assert refusal("tiny_imagenet", tiny) == (
        f"{extra}: no line of {tiny / 'val/val_annotations.txt'} gives its class"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["val/val_annotations.txt"])
def test_a_missing_list_is_named(tiny, name):
    (tiny / name).unlink()
    assert refusal("tiny_imagenet", tiny) == (
        f"{tiny / name}: cannot be read (No such file or directory); expected the folder as "
        "distributed, with wnids.txt, train and val/val_annotations.txt"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words.txt"])
def test_a_list_that_is_no_text_is_named(tiny, name):
    put(tiny / name, b"\xff\xfe\xfd")
    assert refusal("tiny_imagenet", tiny) == f"{tiny / name}: is not text"


@pytest.mark.slow
def test_a_wrong_list_of_classes_is_named(tiny):
    file = put(tiny / "wnids.txt", "\n")
    assert refusal("tiny_imagenet", tiny) == f"{file}: expected one wnid a line, found nothing"
    put(file, "n01\nn02\nn01\nn10\n")
    assert refusal("tiny_imagenet", tiny) == f"{file}, line 3: 'n01' stands there twice"
    put(file, "n01\n\nn02\nn10\n")
    assert refusal("tiny_imagenet", tiny) == f"{file}, line 2: expected a wnid, found nothing"
    put(file, "n01\nn02\n")
    assert refusal("tiny_imagenet", tiny) == (
        f"{tiny / 'train/n10'}: wnids.txt has no class of this name"
    )
    put(file, "n01\nn02\nn10\nn11\n")
    assert refusal("tiny_imagenet", tiny) == (
        f"{tiny / 'train/n11'}: there is no such folder, but wnids.txt has this class"
    )


@pytest.mark.slow
def test_an_empty_class_is_named(tiny):
    shutil.rmtree(tiny / "train/n02/images")
    message = refusal("tiny_imagenet", tiny)
    assert message.startswith(f"{tiny / 'train/n02'}: the class folder holds no image")


@pytest.mark.slow
def test_missing_training_images_are_named(tiny):
    shutil.rmtree(tiny / "train")
    assert refusal("tiny_imagenet", tiny).startswith(f"{tiny / 'train'}: there is no such folder")


@pytest.mark.slow
def test_a_path_without_the_dataset_is_refused(tmp_path):
    missing = tmp_path / "missing"
    assert refusal("tiny_imagenet", missing) == (
        f"{missing}: there is no such file or folder (data.path)"
    )
    for path in (tmp_path, put(tmp_path / "x.txt")):
        assert refusal("tiny_imagenet", path).startswith(f"{path / 'wnids.txt'}: cannot be read (")
