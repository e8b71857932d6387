"""Datasets of other libraries as packs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import raykd
from raykd.data.sources.tables import read_tables
from tests.each import each


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


class Pictures(Dataset):
    """Pictures as some library has them, in one of its forms."""

    def __init__(self, form, label=lambda number: number % 3, count=12):
        self.form, self.label, self.count = form, label, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return self.form(pixels(number)), self.label(number)


FORMS = {
    "PIL": Image.fromarray,
    "array": lambda image: image,
    "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
}


def shown(images):
    """The pixels of encoded images."""
    import io

    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images]


@each("form", FORMS)
def test_a_dataset_of_torch_becomes_a_pack_without_loss(form, tmp_path):
    place = raykd.pack(Pictures(FORMS[form]), tmp_path / "pack", quiet=True)
    dataset = read_tables(place)
    assert dataset.names == ("0", "1", "2")
    images, labels = dataset.splits["train"]
    assert labels.tolist() == [number % 3 for number in range(12)]
    assert all(np.array_equal(a, pixels(n)) for n, a in enumerate(shown(images)))
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_test_images_names_and_texts_are_kept(tmp_path):
    named = Pictures(Image.fromarray, label=lambda number: "dog" if number % 2 else "cat")
    place = raykd.pack(named, tmp_path / "texts", test=Pictures(Image.fromarray, named.label, 4))
    dataset = read_tables(place)
    assert dataset.names == ("cat", "dog")
    assert dataset.splits["test"].labels.tolist() == [0, 1, 0, 1]
    train = Pictures(Image.fromarray)
    train.classes = ["red", "green", "blue", "none"]
    assert read_tables(raykd.pack(train, tmp_path / "named")).names == tuple(train.classes)


def test_images_alone_and_streams_are_packed_too(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from (pixels(number) for number in range(5))

    dataset = read_tables(raykd.pack(Stream(), tmp_path / "pack", quiet=True), labels=False)
    assert len(dataset.splits["train"].images) == 5
    assert dataset.names == ()


def test_the_same_images_find_their_pack_and_others_are_refused(tmp_path):
    place = raykd.pack(Pictures(Image.fromarray), tmp_path / "pack", quiet=True)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").glob("train-0*.arrow")}
    assert stamps
    assert raykd.pack(Pictures(Image.fromarray), tmp_path / "pack", quiet=True) == place
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with pytest.raises(raykd.DataError, match="holds a pack of Pictures"):
        raykd.pack(Pictures(Image.fromarray, label=lambda number: 0), tmp_path / "pack")


def test_what_a_transform_made_is_refused_by_its_place(tmp_path):
    floats = Pictures(lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255)
    with pytest.raises(raykd.DataError, match=r"train image 0: .* got Tensor of float32"):
        raykd.pack(floats, tmp_path / "pack")
    odd = Pictures(Image.fromarray, label=lambda number: 0.5)
    with pytest.raises(raykd.DataError, match=r"train image 0: expected a label .* got 0.5"):
        raykd.pack(odd, tmp_path / "pack")
    mixed = Pictures(Image.fromarray, label=lambda number: "a" if number else 0)
    with pytest.raises(raykd.DataError, match="give all of one kind"):
        raykd.pack(mixed, tmp_path / "pack")


@pytest.mark.slow
def test_a_student_learns_from_a_pack(tmp_path):
    place = raykd.pack(Pictures(Image.fromarray, count=60), tmp_path / "pack", quiet=True)
    student = raykd.Student("resnet8", data=raykd.Data("table"), optim={"epochs": 1, "batch": 16})
    experiment = raykd.Experiment(student, data=place)
    (one,) = raykd.run(experiment, tmp_path / "store", workers=0, quiet=True)
    assert one.recipe.data.classes == 3
    assert one.state == "finished"


def test_a_folder_of_images_is_packed_as_the_command_does(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "images" / "train" / label).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "images" / "train" / label / f"{number}.png"
            Image.fromarray(pixels(number)).save(path)
    place = raykd.pack(tmp_path / "images", tmp_path / "pack", quiet=True)
    assert read_tables(place).names == ("a", "b")
