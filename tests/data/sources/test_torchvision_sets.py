"""Datasets of torchvision, from small files in the layout of each."""

import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raykd.core.errors import DataError
from raykd.data import dataset
from raykd.data.recipe import Data, Stream
from raykd.data.sources import SOURCES
from raykd.data.sources.byte_ranges import Ranges
from raykd.storage.store import Store
from tests.data.files import encoded, md5, picture, pixels, put, serving
from tests.each import each

LABELS = {"train": [1, 0, 1, 0], "test": [0, 1]}  # of the images in their order


def images(split):
    """Pictures of a split, one for each label."""
    first = 0 if split == "train" else 100
    return [picture(first + row) for row in range(len(LABELS[split]))]


def arrays(split, side, channels):
    """Pixels uint8 [N, side, side, channels]."""
    shape = (len(LABELS[split]), side, side, channels)
    return np.random.default_rng(len(split)).integers(0, 256, shape, dtype=np.uint8)


def put_images(name: Callable[[str, int, int], str]) -> Callable[..., None]:
    """A function that writes every image to the file that `name` says, by split, row and class."""

    def write(root: Path, monkeypatch) -> None:
        for split, labels in LABELS.items():
            for row, (label, image) in enumerate(zip(labels, images(split), strict=True)):
                put(root / name(split, row, label), encoded(image))

    return write


def put_idx(path, values):
    """A file in the format of MNIST."""
    shape = struct.pack(f">{values.ndim}i", *values.shape)
    put(path, struct.pack(">i", 0x800 + values.ndim) + shape + values.astype(np.uint8).tobytes())


def mnist(name):
    def write(root, monkeypatch):
        for split, start in (("train", "train"), ("test", "t10k")):
            folder = root / name / "raw"
            put_idx(folder / f"{start}-images-idx3-ubyte", arrays(split, 28, 1)[..., 0])
            put_idx(folder / f"{start}-labels-idx1-ubyte", np.array(LABELS[split]))

    return write


def svhn(root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    listed = {}
    for split, labels in LABELS.items():
        path = put(root / f"{split}_32x32.mat", b"")
        digits = np.array([[label or 10] for label in labels])  # 10 stands for 0
        savemat(path, {"X": arrays(split, 32, 3).transpose(1, 2, 3, 0), "y": digits})
        listed[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", listed)


def stl10(root, monkeypatch):
    from torchvision.datasets import STL10

    folder = root / "stl10_binary"
    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        x = put(folder / f"{split}_X.bin", arrays(split, 96, 3).transpose(0, 3, 2, 1).tobytes())
        y = put(folder / f"{split}_y.bin", bytes(label + 1 for label in LABELS[split]))
        monkeypatch.setattr(STL10, attribute, [[path.name, md5(path)] for path in (x, y)])
    put(folder / "class_names.txt", "plane\nbird\n")


def flowers(root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    put_images(lambda split, row, label: f"flowers-102/jpg/image_{_number(split, row):05d}.jpg")(
        root, monkeypatch
    )
    ids = {split: [_number(split, row) for row in range(len(LABELS[split]))] for split in LABELS}
    labels = [label + 1 for split in LABELS for label in LABELS[split]]
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {"trnid": ids["train"], "valid": [1, 2], "tstid": ids["test"]})
    listed = {"image": ("", "")}
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        listed[key] = (name, md5(folder / name))
    monkeypatch.setattr(Flowers102, "_file_dict", listed)


def _number(split, row):
    """A number from 1 for each image of both splits."""
    return row + 1 if split == "train" else len(LABELS["train"]) + row + 1


def food(root, monkeypatch=None):
    put_images(lambda split, row, label: f"food-101/images/{'ab'[label]}/{split}{row}.jpg")(
        root, monkeypatch
    )
    for split, labels in LABELS.items():
        listed = {"a": [], "b": []}
        for row, label in enumerate(labels):
            listed["ab"[label]].append(f"{'ab'[label]}/{split}{row}")
        put(root / f"food-101/meta/{split}.json", json.dumps(listed))


def pets(root, monkeypatch):
    names = ("big_dog", "Small_cat")
    folder = "oxford-iiit-pet"
    put_images(lambda split, row, label: f"{folder}/images/{names[label]}_{split}{row}.jpg")(
        root, monkeypatch
    )
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = [
            f"{names[label]}_{split}{row} {label + 1} 1 1\n"
            for row, label in enumerate(LABELS[split])
        ]
        put(root / f"{folder}/annotations/{file}.txt", "".join(lines))


def dtd(root, monkeypatch):
    put_images(lambda split, row, label: f"dtd/dtd/images/{'ab'[label]}/{split}{row}.jpg")(
        root, monkeypatch
    )
    for split, labels in LABELS.items():
        lines = [f"{'ab'[label]}/{split}{row}.jpg\n" for row, label in enumerate(labels)]
        put(root / f"dtd/dtd/labels/{split}1.txt", "".join(lines))


def aircraft(root, monkeypatch):
    folder, names = "fgvc-aircraft-2013b/data", ("A 1", "B 2")
    put_images(lambda split, row, label: f"{folder}/images/{split}{row}.jpg")(root, monkeypatch)
    put(root / folder / "variants.txt", "A 1\nB 2\n")
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = [f"{split}{row} {names[label]}\n" for row, label in enumerate(LABELS[split])]
        put(root / f"{folder}/images_variant_{file}.txt", "".join(lines))


def signs(root, monkeypatch):
    def name(split, row, label):
        if split == "train":
            return f"gtsrb/GTSRB/Training/{label:05d}/{row}.ppm"
        return f"gtsrb/GTSRB/Final_Test/Images/{row:05d}.ppm"

    put_images(name)(root, monkeypatch)
    lines = [f"{row:05d}.ppm;{label}\n" for row, label in enumerate(LABELS["test"])]
    put(root / "gtsrb/GT-final_test.csv", "Filename;ClassId\n" + "".join(lines))


def imagenette(split, row, label):
    folder = "train" if split == "train" else "val"
    return f"imagenette2/{folder}/{('n01440764', 'n02102040')[label]}/{row}.jpeg"


def sun(root, monkeypatch):
    put(root / "SUN397/ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    folders = ("a/abbey", "b/bar/indoor")
    put_images(lambda split, row, label: f"SUN397/{folders[label]}/sun_{split}{row}.jpg")(
        root, monkeypatch
    )


MADE = {
    "Country211": (
        put_images(lambda split, row, label: f"country211/{split}/{'AB'[label]}/{row}.jpg"),
        ("A", "B"),
    ),
    "DTD": (dtd, ("a", "b")),
    "EuroSAT": (
        put_images(lambda split, row, label: f"eurosat/2750/{'AB'[label]}/{split}{row}.jpg"),
        ("A", "B"),
    ),
    "FGVCAircraft": (aircraft, ("A 1", "B 2")),
    "FashionMNIST": (mnist("FashionMNIST"), ("T-shirt/top", "Trouser")),
    "Flowers102": (flowers, ("pink primrose", "hard-leaved pocket orchid")),
    "Food101": (food, ("a", "b")),
    "GTSRB": (signs, ("0", "1")),
    "Imagenette": (put_images(imagenette), ("tench", "English springer")),
    "KMNIST": (mnist("KMNIST"), ("o", "ki")),
    "MNIST": (mnist("MNIST"), ("0 - zero", "1 - one")),
    "OxfordIIITPet": (pets, ("Big Dog", "Small Cat")),
    "RenderedSST2": (
        put_images(
            lambda split, row, label: (
                f"rendered-sst2/{split}/{('negative', 'positive')[label]}/{row}.png"
            )
        ),
        ("negative", "positive"),
    ),
    "STL10": (stl10, ("plane", "bird")),
    "SUN397": (sun, ("abbey", "bar/indoor")),
    "SVHN": (svhn, ("0", "1")),
}


def test_every_dataset_that_is_named_is_tested_here():
    listed = {name.removeprefix("torchvision/") for name in SOURCES if "torchvision/" in name}
    assert listed == MADE.keys()


@each("name", MADE)
def test_images_and_labels_are_those_of_torchvision(tmp_path, monkeypatch, name):
    write, names = MADE[name]
    write(tmp_path, monkeypatch)
    read = SOURCES[f"torchvision/{name}"](tmp_path)
    assert read.names[:2] == names
    if name in ("EuroSAT", "SUN397"):  # which have one split
        assert [*read.splits] == ["train"] and len(read.splits["train"].labels) == 6
        pairs = [(p, n) for s in LABELS for p, n in zip(images(s), LABELS[s], strict=True)]
        wanted = {np.asarray(image).tobytes(): label for image, label in pairs}
        labels = [wanted[one.tobytes()] for one in pixels(read)]
        assert read.splits["train"].labels.tolist() == labels
        return
    for split, labels in LABELS.items():
        if isinstance(read.splits[split].images, Ranges):
            wanted = {
                np.asarray(image).tobytes(): label
                for image, label in zip(images(split), labels, strict=True)
            }
        else:
            side = {"STL10": 96, "SVHN": 32}.get(name, 28)
            pictures = arrays(split, side, 1 if side == 28 else 3)
            wanted = {
                np.broadcast_to(image, (side, side, 3)).tobytes(): label
                for image, label in zip(pictures, labels, strict=True)
            }
        labels = [wanted[one.tobytes()] for one in pixels(read, split)]
        assert read.splits[split].labels.tolist() == labels


def test_files_are_streamed_where_they_are(tmp_path):
    food(tmp_path / "food")
    store = Store(tmp_path / "store")
    data = Data(name="torchvision/Food101", stream=Stream(size=6, resize=6))
    read = dataset.read(store, data, tmp_path / "food")
    memory = dataset.read(store, Data(name="torchvision/Food101"), tmp_path / "food")
    assert read.digest == memory.digest and read.classes == 2
    train, test = dataset.open_images(store, read)
    assert (len(train), len(test)) == (4, 2) and train.ranges.files.root == str(tmp_path / "food")


def test_what_the_folder_lacks_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import Food101

    food(tmp_path / "server")
    archive = tmp_path / "server/food-101.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "server/food-101", "food-101")
    monkeypatch.setattr(Food101, "_MD5", md5(archive))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path / "downloads"))
    with serving(tmp_path / "server") as server:
        monkeypatch.setattr(Food101, "_URL", f"{server.address}/food-101.tar.gz")
        read = SOURCES["torchvision/Food101"](None)
        asked = len(server.requests)
        again = SOURCES["torchvision/Food101"](tmp_path / "downloads", labels=False)
        assert asked and len(server.requests) == asked
    assert read.names == ("a", "b") and again.names == ()
    assert len(again.splits["train"].labels) == len(read.splits["train"].labels) == 4


def test_what_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    from torchvision.datasets import Food101

    food(tmp_path)
    (tmp_path / "food-101/images/a/train1.jpg").unlink()
    with pytest.raises(DataError, match=r"train1\.jpg: there is no such file, but the dataset"):
        SOURCES["torchvision/Food101"](tmp_path)
    (tmp_path / "food-101/meta/test.json").unlink()
    with pytest.raises(DataError, match=r"torchvision/Food101 is not in .*data\.path=FOLDER"):
        SOURCES["torchvision/Food101"](tmp_path)
    monkeypatch.setattr(Food101, "_URL", (tmp_path / "nothing.tar.gz").as_uri())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"could not be downloaded or read"):
        SOURCES["torchvision/Food101"](tmp_path / "empty")
