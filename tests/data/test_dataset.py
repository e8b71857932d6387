"""Images in the store: decoded once, named by their content, chosen by key."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raykd.core.errors import CacheCorrupt, ConfigError, DataError
from raykd.data.dataset import Images, open_images, open_split, read
from raykd.data.recipe import Data, ResolvedData
from raykd.storage import arrow
from raykd.storage.store import Store, read_json
from tests.tiers import slow_but

COUNTS = {"train": {"cat": 6, "dog": 3, "owl": 3}, "test": {"cat": 2, "dog": 1, "owl": 1}}


def picture(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """16 PNG images of 6 x 8 pixels in 3 classes and 2 splits."""
    seed = 0
    for split, classes in COUNTS.items():
        for name, count in classes.items():
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / "photos" / split / name / f"{number}.png"
                Image.fromarray(picture(seed)).save(path)
                seed += 1
    return tmp_path / "photos"


FOLDER = Data(name="folder")


def test_reading_fills_in_what_only_files_can_tell(store, photos):
    data = read(store, FOLDER, photos)
    assert (data.classes, data.size) == (3, (6, 8))
    assert len(data.digest) == 20
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert ResolvedData.read(data.plain()) == data


def test_the_pixels_and_labels_are_those_of_the_files(store, photos):
    train, test = open_images(store, read(store, FOLDER, photos))
    assert train.names == test.names == ("cat", "dog", "owl")
    assert train.targets.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert test.targets.tolist() == [0, 0, 1, 2]
    for seed, pixels in enumerate([*train.pixels, *test.pixels]):
        assert np.array_equal(pixels.numpy(), picture(seed))


def test_images_are_decoded_once_and_their_files_are_not_needed_again(store, photos):
    data = read(store, FOLDER, photos)
    shutil.rmtree(photos)
    assert read(store, data, photos) == data
    assert read(store, data, None) == data
    train, _ = open_images(store, data)
    assert len(train) == 12


def test_reading_again_without_a_digest_does_not_decode_again(store, photos):
    data = read(store, FOLDER, photos)
    files = sorted((store.root / "images" / f"{data.digest}-original").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    assert read(store, FOLDER, photos) == data
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_read_that_was_killed_before_its_end_is_done_again(store, photos):
    data = read(store, FOLDER, photos)
    folder = store.root / "images" / f"{data.digest}-original"
    (folder / "images.json").unlink()
    (folder / "test.arrow").write_bytes(b"half")
    with pytest.raises(DataError, match="are not in the store"):
        open_images(store, data)
    assert read(store, FOLDER, photos) == data
    assert len(open_images(store, data)[1]) == 4


def test_the_digest_does_not_depend_on_place_time_or_store(store, photos, tmp_path):
    digest = read(store, FOLDER, photos).digest
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(photos, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert read(Store(tmp_path / "another"), FOLDER, moved).digest == digest


def flip_a_bit(photos: Path) -> None:
    pixels = picture(0)
    pixels[5, 7, 2] ^= 1
    Image.fromarray(pixels).save(photos / "train" / "cat" / "0.png")


CHANGES = {
    "one bit of a pixel": flip_a_bit,
    "one label": lambda photos: (photos / "train/cat/5.png").rename(photos / "train/dog/-5.png"),
    "the name of a class": lambda photos: [
        (photos / split / "owl").rename(photos / split / "own") for split in COUNTS
    ],
    "one image less": lambda photos: (photos / "train/cat/5.png").unlink(),
    "the order": lambda photos: (photos / "train/cat/0.png").rename(photos / "train/cat/9.png"),
    "no test split": lambda photos: shutil.rmtree(photos / "test"),
}


@pytest.mark.parametrize(
    "change", slow_but(CHANGES, ["one bit of a pixel", "one label", "the name of a class"])
)
def test_the_digest_changes_with(change, store, photos):
    before = read(store, FOLDER, photos).digest
    CHANGES[change](photos)
    assert read(store, FOLDER, photos).digest != before


def test_images_that_are_brought_to_several_sizes_lie_beside_each_other(store, photos):
    read_all = [read(store, Data(name="folder", resize=size), photos) for size in (4, 5, None)]
    assert len({data.digest for data in read_all}) == 1
    sizes = [open_images(store, data)[0].pixels.shape[1:3] for data in read_all]
    assert sizes == [(4, 4), (5, 5), (6, 8)]


@pytest.mark.slow
def test_files_that_are_not_those_of_the_recipe_are_refused(store, photos, tmp_path):
    data = read(store, FOLDER, photos)
    flip_a_bit(photos)
    digest = read(store, FOLDER, photos).digest
    with pytest.raises(DataError) as error:
        read(Store(tmp_path / "fresh"), data, photos)
    assert str(error.value) == (
        f"run.data.digest: expected {data.digest}, but the files have {digest}; "
        "they are not the images that this recipe was made with"
    )
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": 4}, "run.data.classes: expected 4, but the images have 3"),
        ({"size": (8, 6)}, r"run.data.size: expected \(8, 6\), but the images have \[6, 8\]"),
    ],
)
def test_what_a_recipe_says_of_its_images_is_checked(store, photos, given, message):
    with pytest.raises(ConfigError, match=message):
        read(store, FOLDER.model_copy(update=given), photos)


def test_a_given_normalisation_is_kept(store, photos):
    recipe = FOLDER.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    data = read(store, recipe, photos)
    assert data.mean == (0.5, 0.5, 0.5)
    assert data.std == read(store, FOLDER, photos).std


def test_images_that_nobody_read_are_not_opened(store):
    with pytest.raises(DataError, match="the images of 'folder' are not in the store"):
        open_images(store, FOLDER.model_copy(update={"digest": "0" * 20}))
    with pytest.raises(DataError, match="not in the store"):
        open_images(store, FOLDER)


def test_a_dataset_without_a_test_split_holds_out_a_share_of_each_class(store, photos):
    shutil.rmtree(photos / "test")
    data = read(store, FOLDER.model_copy(update={"holdout": 1 / 3}), photos)
    train, test = open_images(store, data)
    assert torch.bincount(train.targets).tolist() == [4, 2, 2]
    assert torch.bincount(test.targets).tolist() == [2, 1, 1]
    everything = {picture(seed).tobytes() for seed in range(12)}
    parts = [{p.numpy().tobytes() for p in part.pixels} for part in (train, test)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]


@pytest.mark.slow
def test_a_share_that_leaves_nothing_to_test_is_refused(store, photos):
    shutil.rmtree(photos / "test")
    data = read(store, FOLDER.model_copy(update={"holdout": 0.01}), photos)
    with pytest.raises(ConfigError, match=r"run.data.holdout: 0.01 of 12 images is 0, which"):
        open_images(store, data)


def test_holdout_and_limit_are_chosen_by_the_seed_of_the_data(store, digits):
    def chosen(**changes) -> list[bytes]:
        return [part.pixels.numpy().tobytes() for part in open_images(store, digits_with(changes))]

    def digits_with(changes) -> Data:
        return digits.model_copy(update=changes)

    assert chosen() == chosen()
    train, test = chosen(seed=1)
    assert train != chosen()[0] and test != chosen()[1]
    assert chosen(limit=100)[1] == chosen()[1], "the limit leaves the test images alone"


def test_a_limit_keeps_the_classes_in_proportion(store, digits):
    whole, _ = open_images(store, digits.model_copy(update={"limit": None}))
    shares = torch.bincount(whole.targets) / len(whole)
    for limit in (10, 50, 200, 1000):
        train, _ = open_images(store, digits.model_copy(update={"limit": limit}))
        assert len(train) == limit
        off = torch.bincount(train.targets, minlength=10) - shares * limit
        assert off.abs().max() < 1


def test_a_limit_beyond_the_images_is_refused(store, digits):
    with pytest.raises(ConfigError) as error:
        open_images(store, digits.model_copy(update={"limit": 1439}))
    assert str(error.value) == "run.data.limit: 1439 is more than the 1438 training samples"


def test_the_recipe_of_the_test_rows_ignores_what_only_training_rows_follow(store, digits):
    assert digits.test() == digits.model_copy(update={"limit": 7}).test()
    assert digits.test().augment.views() == 1
    assert digits.test().limit is None
    one, two = (open_images(store, data)[1] for data in (digits, digits.test()))
    assert torch.equal(one.pixels, two.pixels)


def bytes_of(images: Images) -> list[bytes]:
    """Every image, by its pixels."""
    return [pixels.numpy().tobytes() for pixels in images.pixels]


@pytest.mark.parametrize("split", slow_but(["with", "without"], ["without"]))
def test_validation_images_are_neither_trained_nor_tested_on(store, photos, split):
    if split == "without":
        shutil.rmtree(photos / "test")
    data = read(store, FOLDER.model_copy(update={"holdout": 1 / 3, "validation": 0.5}), photos)
    parts = [bytes_of(part) for part in open_images(store, data)]
    parts.append(bytes_of(open_split(store, data, "validation")))
    everything = [image for part in parts for image in part]
    assert len(everything) == len(set(everything)) == (16 if split == "with" else 12)
    assert len(parts[0]) == len(parts[2]), "half of what is not tested on"


def test_the_splits_are_those_that_are_trained_and_tested_on(store, digits):
    data = digits.model_copy(update={"validation": 0.2})
    for split, images in zip(("train", "test"), open_images(store, data), strict=True):
        assert bytes_of(open_split(store, data, split)) == bytes_of(images)


def test_validation_images_are_held_out_of_each_class_in_proportion(store, digits):
    whole, _ = open_images(store, digits.model_copy(update={"limit": None}))
    shares = torch.bincount(whole.targets) / len(whole)
    for validation in (0.1, 0.25, 0.5, 0.9):
        data = digits.model_copy(update={"limit": None, "validation": validation})
        train, _ = open_images(store, data)
        held = open_split(store, data, "validation")
        assert len(held) == round(validation * len(whole))
        assert len(held) + len(train) == len(whole)
        for part in (train, held):
            off = torch.bincount(part.targets, minlength=10) - shares * len(part)
            assert off.abs().max() < 1


def test_the_validation_images_are_the_same_whatever_is_trained_on(store, digits):
    data = digits.model_copy(update={"validation": 0.2})
    held = open_split(store, data, "validation")
    for change in ({"limit": 10}, {"limit": None}, {"augment": data.test().augment}):
        other = open_split(store, data.model_copy(update=change), "validation")
        assert torch.equal(other.pixels, held.pixels)
        assert torch.equal(other.targets, held.targets)
    assert torch.equal(open_split(store, data.held_out(), "validation").pixels, held.pixels)


def test_the_validation_images_are_drawn_by_the_seed_of_the_data(store, photos):
    def held(seed: int) -> list[bytes]:
        data = read(store, FOLDER.model_copy(update={"validation": 0.5, "seed": seed}), photos)
        return bytes_of(open_split(store, data, "validation"))

    assert held(3) == held(3)
    assert len({tuple(held(seed)) for seed in range(4)}) > 1


def test_the_test_images_are_the_same_with_and_without_validation(store, digits):
    _, without = open_images(store, digits)
    for validation in (0.1, 0.5):
        data = digits.model_copy(update={"validation": validation})
        assert torch.equal(open_images(store, data)[1].pixels, without.pixels)
        assert data.test() == digits.test(), "so that both are compared with one cache"


def test_the_recipe_of_the_validation_rows_ignores_what_only_training_rows_follow(store, digits):
    data = digits.model_copy(update={"validation": 0.2})
    assert data.held_out() == data.model_copy(update={"limit": 7}).held_out()
    assert data.held_out().augment.views() == 1
    assert data.held_out() != data.model_copy(update={"validation": 0.3}).held_out()


def test_a_limit_counts_what_validation_leaves(store, digits):
    data = digits.model_copy(update={"validation": 0.5, "limit": 719})
    assert len(open_images(store, data)[0]) == 719
    with pytest.raises(ConfigError, match="limit: 720 is more than the 719 training samples"):
        open_images(store, data.model_copy(update={"limit": 720}))


def test_a_share_that_leaves_nothing_to_validate_or_to_train_on_is_refused(store, photos):
    for share, count in ((0.01, 0), (0.99, 12)):
        data = read(store, FOLDER.model_copy(update={"validation": share}), photos)
        with pytest.raises(ConfigError, match=f"validation: {share} of 12 images is {count}, whi"):
            open_images(store, data)


def test_images_to_validate_on_are_there_only_where_they_are_held_out(store, digits):
    with pytest.raises(
        ConfigError, match=r"run\.data\.validation: no images are held out; say whi"
    ):
        open_split(store, digits, "validation")


@pytest.mark.slow
def test_a_damaged_file_of_the_store_is_named(store, photos):
    data = read(store, FOLDER, photos)
    path = store.root / "images" / f"{data.digest}-original" / "train.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(arrow.CacheCorrupt, match=str(path)):
        open_images(store, data)


def test_the_store_says_what_the_images_are(store, photos):
    data = read(store, FOLDER, photos)
    facts = read_json(store.root / "images" / f"{data.digest}-original" / "images.json")
    assert facts["digest"] == data.digest
    assert facts["names"] == ["cat", "dog", "owl"]
    assert set(facts["splits"]) == {"train", "test"}


def test_a_name_that_is_no_dataset_suggests_one():
    with pytest.raises(ValueError, match="no dataset is called 'cifar11'; did you mean 'cifar10'"):
        Data(name="cifar11")


def test_one_flipped_byte_in_the_decoded_images_is_found_and_named(store, photos):
    data = read(store, FOLDER, photos)
    path = store.root / "images" / f"{data.digest}-original" / "train.arrow"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CacheCorrupt, match=r"train\.arrow.*altered; remove"):
        open_images(store, data)
