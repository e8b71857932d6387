"""Where images come from: digits, folders of files, tables, CIFAR; and what is said of bad ones."""

import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raykd.core.errors import DataError
from raykd.data.dataset import open_images, read
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES
from raykd.data.sources.splits import Dataset
from tests.data.files import closed_port, encoded, md5, picture, pixels, put, refusal, serving
from tests.each import each
from tests.tiers import slow_but

ROOT = Path(__file__).parents[3]
CIFAR10 = Path(os.environ.get("RAYKD_TEST_CIFAR10", ROOT / "../shared/data/cifar10"))
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="RAYKD_TEST_CIFAR10 names no folder of CIFAR-10's Parquet files"
)


# Digits


def test_digits_are_scikit_learn_s_in_256_grey_levels():
    dataset = SOURCES["digits"](None)
    bunch = load_digits()
    assert list(dataset.splits) == ["train"]
    assert dataset.names == tuple("0123456789")
    assert np.array_equal(dataset.splits["train"].labels, bunch.target)
    decoded = pixels(dataset)
    assert decoded.shape == (1797, 8, 8, 3) and decoded.dtype == np.uint8
    # 17 grey levels, spread over 0 to 255 and rounded.
    assert np.abs(decoded[..., 0] - bunch.images / 16 * 255).max() <= 0.5
    assert (decoded == decoded[..., :1]).all()
    assert dataset.splits["train"].images.origin(5) == "digits train, row 5"


# Folders


def test_a_tree_with_train_and_test_is_read_in_the_order_of_class_and_name(tmp_path):
    for number, name in enumerate(["train/b/2.png", "train/b/10.jpg", "train/a/x.JPEG"]):
        put(tmp_path / name, encoded(picture(number), "PNG"))
    put(tmp_path / "test/b/deep/er/1.png", encoded(picture(9)))
    put(tmp_path / "train/a/notes.txt", b"no image")
    put(tmp_path / "train/.cache/1.png")
    dataset = SOURCES["folder"](tmp_path)
    assert dataset.names == ("a", "b")
    assert dataset.splits["train"].labels.tolist() == [0, 1, 1]
    assert dataset.splits["test"].labels.tolist() == [1]
    for row, number in enumerate([2, 1, 0]):
        assert np.array_equal(pixels(dataset)[row], np.asarray(picture(number)))
    assert np.array_equal(pixels(dataset, "test")[0], np.asarray(picture(9)))
    assert dataset.splits["train"].images.origin(1) == str(tmp_path / "train/b/10.jpg")


@pytest.mark.parametrize("name", ["valid"])
def test_a_validation_folder_stands_for_a_test_folder(tmp_path, name):
    put(tmp_path / "train/a/1.png")
    put(tmp_path / "train/b/1.png")
    put(tmp_path / name / "a/1.png")
    assert list(SOURCES["folder"](tmp_path).splits) == ["train", "test"]


def test_a_flat_tree_has_no_test_split(tmp_path):
    put(tmp_path / "cat/1.png")
    put(tmp_path / "test/1.png")  # a class of this name: there is no folder called train
    dataset = SOURCES["folder"](tmp_path)
    assert list(dataset.splits) == ["train"]
    assert dataset.names == ("cat", "test")


def test_a_class_may_have_no_test_image(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        put(tmp_path / name)
    assert SOURCES["folder"](tmp_path).splits["test"].labels.tolist() == [0]


def test_an_empty_class_folder_is_refused(tmp_path):
    put(tmp_path / "a/1.png")
    put(tmp_path / "b/readme.md")
    assert refusal("folder", tmp_path).startswith(f"{tmp_path / 'b'}: the class folder holds no im")


def test_a_test_class_that_is_not_trained_on_is_refused(tmp_path):
    put(tmp_path / "train/a/1.png")
    put(tmp_path / "train/b/1.png")
    put(tmp_path / "test/c/1.png")
    assert refusal("folder", tmp_path) == (
        f"{tmp_path / 'test/c'}: no class of this name is in {tmp_path / 'train'}"
    )


def test_a_path_that_is_no_tree_of_images_is_refused(tmp_path):
    missing = tmp_path / "missing"
    assert refusal("folder", missing) == f"{missing}: there is no such file or folder (data.path)"
    assert refusal("folder", None) == (
        "a dataset of kind 'folder' lies in files; say where: data.path=PATH"
    )
    file = put(tmp_path / "files/1.png")
    assert "expected a folder with one folder of images per class" in refusal("folder", file)
    assert "found no folder" in refusal("folder", file.parent)


def broken_png() -> bytes:
    """A PNG whose first byte of pixels was flipped, so that its checksum is wrong."""
    whole = bytearray(encoded(picture()))
    whole[whole.index(b"IDAT") + 4] ^= 255
    return bytes(whole)


BROKEN = {
    "nothing": b"",
    "text": b"this is no image",
    "half a PNG": encoded(picture())[:60],
    "half a JPEG": encoded(picture(0, 64, 64), "JPEG")[:2000],
    "a PNG with a wrong checksum": broken_png(),
    # The header says 65,535 x 65,535 pixels.
    "a bomb": b"BM" + bytes(16) + b"\xff\xff\0\0\xff\xff\0\0\1\0\x18" + bytes(60),
    "16 bits a channel": encoded(Image.fromarray(np.full((6, 8), 40_000, dtype=np.uint16))),
}


@each("what", slow_but(BROKEN, ["half a JPEG", "a bomb", "16 bits a channel"]))
def test_a_file_that_is_no_readable_image_is_named(tmp_path, what):
    put(tmp_path / "b/1.png")
    bad = put(tmp_path / "a/2.png", BROKEN[what])
    message = refusal("folder", tmp_path)
    assert message.startswith(f"{bad}: cannot be decoded as an image (")
    assert message.endswith("; replace or remove it")


def test_images_of_several_sizes_need_a_resize(tmp_path):
    put(tmp_path / "a/1.png", encoded(picture(0, 6, 8)))
    put(tmp_path / "a/2.png", encoded(picture(1, 9, 5)))
    put(tmp_path / "b/1.png", encoded(picture(2, 6, 8)))
    assert refusal("folder", tmp_path) == (
        f"{tmp_path / 'a/2.png'}: 5 x 9 pixels, but the images before have 8 x 6; "
        "set run.data.resize to bring all to one size"
    )
    assert pixels(SOURCES["folder"](tmp_path), resize=4).shape == (3, 4, 4, 3)


def test_test_images_have_the_size_of_the_training_images(store, tmp_path):
    for name in "ab":
        put(tmp_path / "train" / name / "1.png", encoded(picture(0, 6, 8)))
    put(tmp_path / "test/a/1.png", encoded(picture(1, 8, 6)))
    with pytest.raises(DataError, match="6 x 8 pixels, but the images before have 8 x 6"):
        read(store, Data(name="folder"), tmp_path)


def test_resize_scales_the_shorter_side_and_crops_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255  # the middle third is what is left
    for name in ("a/1.png", "b/1.png"):
        put(tmp_path / name, encoded(Image.fromarray(wide)))
    small = pixels(SOURCES["folder"](tmp_path), resize=5)[0]
    assert small.shape == (5, 5, 3)
    assert (small[:, 1:4] == 255).all()


def sideways() -> tuple[bytes, np.ndarray]:
    """A PNG that says that it is to be turned, and how it looks then."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the right
    return encoded(picture(), exif=exif), np.rot90(np.asarray(picture()), -1)


GREY = np.asarray(picture().convert("L"))
FEW = picture().quantize(8)
FORMS = {
    "grey": (encoded(picture().convert("L")), np.repeat(GREY[..., None], 3, axis=2)),
    "black and white": (encoded(picture().convert("1")), None),
    "grey with alpha": (encoded(picture().convert("LA")), np.repeat(GREY[..., None], 3, axis=2)),
    "colour with alpha": (encoded(picture().convert("RGBA")), np.asarray(picture())),
    "a palette": (encoded(FEW), np.asarray(FEW.convert("RGB"))),
    "a palette with one clear colour": (
        encoded(FEW, transparency=2),
        np.asarray(FEW.convert("RGB")),
    ),
    "a palette with alpha": (
        encoded(FEW, transparency=bytes([0, 128, 255])),
        np.asarray(FEW.convert("RGB")),
    ),
    "turned": sideways(),
    "BMP": (encoded(picture(), "BMP"), np.asarray(picture())),
    "TIFF": (encoded(picture(), "TIFF"), np.asarray(picture())),
    "WebP": (encoded(picture(), "WEBP", lossless=True), np.asarray(picture())),
    "four inks": (encoded(picture().convert("CMYK"), "TIFF"), np.asarray(picture())),
}


@each("form", slow_but(FORMS, ["grey", "a palette with alpha", "turned"]))
def test_every_form_of_image_becomes_three_channels(tmp_path, form):
    data, expected = FORMS[form]
    for name in ("a", "b"):
        put(tmp_path / name / "1.png", data)
    decoded = pixels(SOURCES["folder"](tmp_path))
    if expected is None:
        expected = np.asarray(picture().convert("1").convert("RGB"))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded[0], expected)


# Tables


def images(count: int) -> list[bytes]:
    return [encoded(picture(seed)) for seed in range(count)]


def structs(count: int) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": "x.png"} for data in images(count)], kind)


def table(image=None, label=(0, 1, 1), names: tuple[str, str] = ("image", "label")) -> pa.Table:
    """A table of images, those of `structs(3)` by default, and labels."""
    columns = [structs(3) if image is None else pa.array(image), pa.array(label)]
    return pa.table(dict(zip(names, columns, strict=True)))


def put_table(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(content, path)
    else:
        feather.write_feather(content, str(path))
    return path


def put_stream(path: Path, content: pa.Table) -> Path:
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content)
    return path


def check(dataset: Dataset, labels: list[int], split: str = "train") -> None:
    assert dataset.splits[split].labels.tolist() == labels
    expected = [np.asarray(picture(seed)) for seed in range(len(labels))]
    assert np.array_equal(pixels(dataset, split), np.stack(expected))


@pytest.mark.slow
def test_the_usual_names_of_columns_are_known(tmp_path):
    for label in ["label", "labels", "fine_label", "target", "cls"]:
        for image in ["image", "img", "jpg", "png"]:
            put_table(tmp_path / "a.parquet", table(images(3), names=(image, label)))
            check(SOURCES["table"](tmp_path), [0, 1, 1])


IMAGES = {
    "structs": structs(3),
    "bytes": pa.array(images(3), pa.binary()),
    "large bytes": pa.array(images(3), pa.large_binary()),
}


@pytest.mark.parametrize("kind", slow_but(IMAGES, ["structs"]))
@pytest.mark.parametrize("name", slow_but(["a.parquet", "a.arrow", "a.feather"], ["a.arrow"]))
def test_every_kind_of_table_and_of_image_column_is_read(tmp_path, kind, name):
    file = put_table(tmp_path / name, table(IMAGES[kind]))
    check(SOURCES["table"](tmp_path), [0, 1, 1])
    check(SOURCES["table"](file), [0, 1, 1])


def test_a_stream_of_arrow_is_read(tmp_path):
    put_stream(tmp_path / "a.arrow", table())
    check(SOURCES["table"](tmp_path), [0, 1, 1])


LAYOUTS = {
    "the Hub's": ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000"),
    "the Hub's conversion": ("default/train/0000", "default/train/0001", "default/test/0000"),
    "the dataset's name first": ("digits-train-0", "digits-train-1", "digits_test"),
    "validation": ("Train1", "train2", "validation"),
    "no word for training": ("part0", "part1", "test"),
}


@each("layout", slow_but(LAYOUTS, ["the Hub's conversion", "validation"]))
def test_files_belong_to_the_split_that_their_name_or_folder_says(tmp_path, layout):
    for name, label in zip(LAYOUTS[layout], ([0, 1, 1], [1, 0, 0], [1, 1, 0]), strict=True):
        put_table(tmp_path / f"{name}.parquet", table(label=label))
    dataset = SOURCES["table"](tmp_path)
    assert dataset.splits["train"].labels.tolist() == [0, 1, 1, 1, 0, 0]
    check(dataset, [1, 1, 0], "test")
    third = str(tmp_path / f"{LAYOUTS[layout][1]}.parquet")
    assert dataset.splits["train"].images.origin(4) == f"{third}, row 1"


def test_test_files_come_before_validation_files(tmp_path):
    for name, label in (("train", [0, 1, 2]), ("test", [2, 1, 0]), ("validation", [1, 1, 1])):
        put_table(tmp_path / f"{name}.parquet", table(label=label))
    dataset = SOURCES["table"](tmp_path)
    assert dataset.splits["test"].labels.tolist() == [2, 1, 0]


def test_hidden_files_are_no_tables(tmp_path):
    put_table(tmp_path / "train.parquet", table())
    (tmp_path / "._train.parquet").write_bytes(b"what macOS leaves in archives")
    (tmp_path / ".cache").mkdir()
    put_table(tmp_path / ".cache" / "train.parquet", table())
    assert len(SOURCES["table"](tmp_path).splits["train"].labels) == 3


def test_a_single_file_is_all_data_whatever_its_name(tmp_path):
    dataset = SOURCES["table"](put_table(tmp_path / "test.parquet", table()))
    assert list(dataset.splits) == ["train"]


def test_text_labels_become_classes_in_sorted_order(tmp_path):
    put_table(tmp_path / "train.parquet", table(label=["owl", "cat", "owl"]))
    put_table(tmp_path / "test.parquet", table(label=pa.array(["cat"] * 3).dictionary_encode()))
    dataset = SOURCES["table"](tmp_path)
    assert dataset.names == ("cat", "owl")
    assert dataset.splits["train"].labels.tolist() == [1, 0, 1]
    assert dataset.splits["test"].labels.tolist() == [0, 0, 0]


HUB = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}})


@each("metadata", [{"huggingface": HUB}, {"classes": "no,yes"}])
@each("name", ["train.parquet"])
def test_class_names_come_from_the_metadata(tmp_path, metadata, name):
    put_table(tmp_path / name, table().replace_schema_metadata(metadata))
    assert SOURCES["table"](tmp_path).names == ("no", "yes")


def test_numbers_are_the_names_of_classes_without_names(tmp_path):
    put_table(tmp_path / "a.parquet", table(label=pa.array([2, 0, 1], pa.uint8())))
    assert SOURCES["table"](tmp_path).names == ("0", "1", "2")


NAMED = {"classes": "no,yes"}
BAD_TABLES = {
    "no image column": (
        table(names=("photo", "label")),
        ": expected a column of encoded images called image or img or jpg or png, "
        "found photo, label",
    ),
    "no label column": (
        table(names=("image", "class")),
        ": expected a column of labels called label or labels or fine_label or target or cls, "
        "found image, class",
    ),
    "images that are text": (
        table(["a.png", "b.png", "c.png"]),
        ": the image column holds string, expected encoded bytes",
    ),
    "structs without bytes": (
        table(pa.array([{"path": "x"}] * 3)),
        ": the image column is a struct without a field 'bytes'",
    ),
    "a missing image": (table([*images(1), None, None]), ", row 1: the image is missing"),
    "a missing struct": (
        table(pa.array([None, *structs(2).to_pylist()], structs(1).type)),
        ", row 0: the image is missing",
    ),
    "a missing label": (table(label=[0, 1, None]), ", row 2: the label is missing"),
    "a negative label": (
        table(label=[0, -1, 1]),
        ", row 1: label -1 is out of range; the 2 classes are numbered from 0",
    ),
    "a label beyond the classes": (
        table(label=[0, 1, 2]).replace_schema_metadata(NAMED),
        ", row 2: label 2 is out of range; the 2 classes are numbered from 0",
    ),
    "a label that no number of classes explains": (
        table(label=[0, 1, 2**62]),
        f", row 2: label {2**62} is out of range; 3 rows cannot fill the classes from 0 to that",
    ),
    "labels with a fraction": (
        table(label=[0.0, 1.0, 1.0]),
        ", row 0: label 0.0 is no class; expected integers or strings",
    ),
    "a label that is no class": (
        table(label=["no", "yes", "maybe"]).replace_schema_metadata(NAMED),
        ", row 2: label 'maybe' is no class; there are no, yes",
    ),
    "an image that is none": (
        table([*images(2), b"text"]),
        ", row 2: cannot be decoded as an image (",
    ),
}


QUICK = [
    "no label column", "structs without bytes", "a missing struct", "a negative label",
    "a label that is no class", "an image that is none",
]  # fmt: skip


@each("what", slow_but(BAD_TABLES, QUICK))
def test_a_table_that_cannot_be_used_is_named_with_its_row(tmp_path, what):
    content, message = BAD_TABLES[what]
    file = put_table(tmp_path / "train.parquet", content)
    assert refusal("table", tmp_path).startswith(f"{file}{message}")


def test_a_class_without_a_training_image_is_refused(tmp_path):
    put_table(tmp_path / "a.parquet", table(label=[0, 2, 2]))
    assert refusal("table", tmp_path).startswith("class 1 ('1') has no training image that can be")


def test_a_test_label_that_is_not_trained_on_is_refused(tmp_path):
    put_table(tmp_path / "train.parquet", table(label=["a", "b", "b"]))
    file = put_table(tmp_path / "test.parquet", table(label=["a", "c", "b"]))
    assert refusal("table", tmp_path) == f"{file}, row 1: label 'c' is no class; there are a, b"


def test_an_empty_table_is_refused(tmp_path):
    put_table(tmp_path / "a.parquet", table().slice(0, 0))
    assert (
        refusal("table", tmp_path)
        == "the train split of this dataset has no image that can be used"
    )


@pytest.mark.parametrize("name", slow_but(["a.parquet", "a.arrow", "a.feather"], ["a.arrow"]))
def test_a_file_that_is_no_table_is_named(tmp_path, name):
    for data in (b"", b"garbage" * 100):
        file = put(tmp_path / name, data)
        assert refusal("table", tmp_path).startswith(f"{file}: cannot be read as a table (")


def test_a_folder_without_training_tables_is_refused(tmp_path):
    assert refusal("table", tmp_path) == (
        f"{tmp_path}: expected .parquet, .pq, .arrow, .feather, .ipc files, found none"
    )
    put_table(tmp_path / "test.parquet", table())
    assert refusal("table", tmp_path) == (
        f"{tmp_path}: none of its 1 table files is a training split; "
        "their names have the word 'train', 'test' or 'val'"
    )


# CIFAR


@pytest.mark.parametrize("name", ["cifar100"])
def test_a_failed_download_says_where_the_files_belong(tmp_path, monkeypatch, name):
    from torchvision import datasets

    with closed_port() as address:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/cifar.tar.gz")
        monkeypatch.setattr(datasets.CIFAR100, "url", f"{address}/cifar.tar.gz")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("RAYKD_DATA", str(tmp_path))
        message = refusal(name, None)
    assert message.startswith(f"{name.upper()} is not in {tmp_path} and could not be downloaded (")
    assert "refused" in message
    assert message.endswith("copy it there, or give data.path=FOLDER with its Parquet files")


def test_an_altered_download_is_refused(tmp_path, monkeypatch):
    from torchvision import datasets

    put(tmp_path / "cifar-10-batches-py" / "data_batch_1", b"not what its MD5 says")
    put(tmp_path / "cifar-10-python.tar.gz", b"neither is this")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert refusal("cifar10", tmp_path).startswith(f"CIFAR10 is not in {tmp_path}")


def put_cifar100(root: Path) -> Path:
    """An archive like the official one, with 100 training and 10 test images."""
    folder = root / "cifar-100-python"
    names = [f"class {number}" for number in range(100)]
    rows = np.random.default_rng(0).integers(0, 256, (110, 3 * 32 * 32), dtype=np.uint8)
    labels = [99 - number for number in range(100)] + [5] * 10
    content = {"meta": {"fine_label_names": names, "coarse_label_names": ["coarse"] * 20}}
    for split, part in (("train", slice(0, 100)), ("test", slice(100, 110))):
        fine = labels[part]
        coarse = [0] * len(fine)
        content[split] = {"data": rows[part], "fine_labels": fine, "coarse_labels": coarse}
    for name, entry in content.items():
        put(folder / name, pickle.dumps(entry, protocol=2))
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as file:
        file.add(folder, folder.name)
    return folder


def test_cifar100_is_read_from_its_official_files(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = put_cifar100(tmp_path / "server")
    # Where torchvision gets the files, and which it takes for whole, are data of its class.
    kind, sums = datasets.CIFAR100, {name: md5(folder / name) for name in ("train", "test", "meta")}
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["meta"]})
    monkeypatch.setattr(kind, "tgz_md5", md5(folder.parent / "cifar-100-python.tar.gz"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path / "downloads"))
    with serving(folder.parent) as server:
        monkeypatch.setattr(kind, "url", f"{server.address}/cifar-100-python.tar.gz")
        dataset = SOURCES["cifar100"](None)
    assert dataset.names[:2] == ("class 0", "class 1") and len(dataset.names) == 100
    assert dataset.splits["train"].labels.tolist() == list(range(99, -1, -1))  # the fine ones
    assert dataset.splits["test"].labels.tolist() == [5] * 10
    # A row has the red plane, then the green and the blue one, each by rows of the image.
    planes = pickle.loads((folder / "test").read_bytes())["data"].reshape(10, 3, 32, 32)
    assert np.array_equal(pixels(dataset, "test"), planes.transpose(0, 2, 3, 1))
    again = SOURCES["cifar100"](tmp_path / "downloads")  # from the folder, without the server
    assert np.array_equal(pixels(again), pixels(dataset))
    put(tmp_path / "downloads/cifar-100-python/meta", b"altered")
    assert "metadata file not found or corrupted" in refusal("cifar100", tmp_path / "downloads")


def test_cifar_tables_have_the_constants_of_the_field_whoever_read_them_first(store, tmp_path):
    path = tmp_path / "cifar"
    put_table(path / "train.parquet", table(names=("img", "label")))
    plain = read(store, Data(name="table"), path)
    cifar = read(store, Data(name="cifar10"), path)
    assert cifar.mean == (0.4914, 0.4822, 0.4465) != plain.mean
    assert cifar.std == (0.2023, 0.1994, 0.2010)
    hundred = read(store, Data(name="cifar100"), path)
    assert hundred.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.std == (0.2675, 0.2565, 0.2761)
    assert cifar.digest == hundred.digest == plain.digest
    streamed = read(store, Data(name="cifar10", stream=Stream(size=6, resize=6)), path)
    assert (streamed.digest, streamed.mean, streamed.std) == (cifar.digest, cifar.mean, cifar.std)
    assert read(store, Data(name="table"), path) == plain


@needs_cifar10
def test_cifar10_s_tables_are_the_dataset():
    dataset = SOURCES["cifar10"](CIFAR10)
    assert dataset.names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(dataset.splits["train"].labels).tolist() == [5000] * 10
    assert np.bincount(dataset.splits["test"].labels).tolist() == [1000] * 10


@needs_cifar10
@pytest.mark.slow
def test_cifar10_s_pixels_have_the_published_mean(store):
    data = read(store, Data(name="cifar10"), CIFAR10)
    train, test = open_images(store, data)
    assert (len(train), len(test), data.size) == (50_000, 10_000, (32, 32))
    mean = train.pixels.view(-1, 3).double().mean(dim=0) / 255
    # The published mean is that of the original; copies of it as JPEG are off by up to 2e-4.
    assert mean.tolist() == pytest.approx((0.4914, 0.4822, 0.4465), abs=3e-4)
