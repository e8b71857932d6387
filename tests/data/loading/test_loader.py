"""Batches: normalised as torchvision does it, in the layout that convolutions like."""

import pytest
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from raykd.data.dataset import Images, open_images
from raykd.data.loading.loader import Views
from raykd.data.recipe import ResolvedData
from raykd.data.transforms.augment import Augment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
READ = {"name": "digits", "digest": "0", "classes": 4, "size": (8, 8), "mean": MEAN, "std": STD}


@pytest.fixture
def views() -> Views:
    """30 images of noise, 5 x 7 pixels, in 4 classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 5, 7, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 4, (30,), generator=generator)
    data = ResolvedData(
        **READ,
        augment=Augment(pad=2, flip=True),
        seed=6,
    )
    return Views(Images(pixels, targets, ("a", "b", "c", "d")), data)


def unaugmented(views: Views) -> Views:
    return Views(views.images, views.data.model_copy(update={"augment": Augment()}))


def test_pixels_are_normalised_as_torchvision_does_it(views):
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])
    batch = unaugmented(views).batch(torch.arange(30), 0)
    for image, normalised in zip(views.images.pixels, batch.pixels, strict=True):
        # The same real number in another order of float32 operations.
        torch.testing.assert_close(normalised, expected(image.numpy()), rtol=0, atol=1e-6)


def test_every_grey_level_of_every_channel_is_right_in_float64():
    levels = torch.arange(256, dtype=torch.uint8)
    pixels = levels.view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    images = Images(pixels, torch.zeros(1, dtype=torch.int64), ("a",))
    batch = Views(images, ResolvedData(**READ)).batch(torch.tensor([0]), 0)
    mean, std = (torch.tensor(t, dtype=torch.float64).view(3, 1) for t in (MEAN, STD))
    expected = (levels.double() / 255 - mean) / std
    # float32: values up to 2.8, whose last bit is 2.4e-7.
    torch.testing.assert_close(batch.pixels.view(3, 256).double(), expected, rtol=0, atol=1e-6)


def test_a_batch_has_the_types_and_the_layout_of_the_nouns(views):
    ids = torch.tensor([7, 0, 29, 7])
    batch = views.batch(ids, view=3, epoch=11)
    assert batch.pixels.shape == (4, 3, 5, 7)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.dtype == torch.int64
    assert torch.equal(batch.targets, views.images.targets[ids])
    assert torch.equal(batch.ids, ids)
    assert (batch.view, batch.epoch) == (3, 11)


def test_a_view_is_augmented_with_the_data_s_seed_before_it_is_normalised(views):
    ids = torch.tensor([3, 9, 4])
    shown = views.data.augment.apply(views.images.pixels[ids], ids, 5, seed=6)
    images = Images(shown, views.images.targets[ids], views.images.names)
    expected = Views(images, unaugmented(views).data).batch(torch.arange(3), 0)
    assert torch.equal(views.batch(ids, 5).pixels, expected.pixels)


def test_a_sample_looks_the_same_in_any_batch(views):
    whole = views.batch(torch.arange(30), 2).pixels
    for ids in torch.randperm(30, generator=torch.Generator().manual_seed(1)).split(7):
        assert torch.equal(views.batch(ids, 2).pixels, whole[ids])


def test_batches_follow_the_rows_that_are_asked_for(views):
    rows = torch.randperm(30, generator=torch.Generator().manual_seed(2)).view(5, 6)
    batches = list(views.batches(rows, view=1, epoch=4))
    assert torch.equal(torch.stack([batch.ids for batch in batches]), rows)
    assert {(batch.view, batch.epoch) for batch in batches} == {(1, 4)}
    assert torch.equal(batches[2].pixels, views.batch(rows[2], 1).pixels)


def test_runs_reach_every_row_and_the_last_may_be_short(views):
    batches = list(views.runs(torch.arange(10, 30), 8, view=6))
    assert [len(batch.ids) for batch in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.arange(10, 30))
    assert {batch.view for batch in batches} == {6}


def test_real_images_that_were_normalised_have_mean_0_and_std_1(store, digits):
    data = digits.model_copy(update={"augment": Augment(), "limit": None})
    train, test = open_images(store, data)
    both = [Views(part, data).batch(torch.arange(len(part)), 0).pixels for part in (train, test)]
    pixels = torch.cat(both).double()
    # The statistics are kept to 4 digits.
    torch.testing.assert_close(pixels.mean(), torch.tensor(0.0).double(), rtol=0, atol=2e-4)
    torch.testing.assert_close(pixels.std(), torch.tensor(1.0).double(), rtol=0, atol=4e-4)


def test_loading_leaves_the_images_as_they_were(views):
    before = views.images.pixels.clone()
    unaugmented(views).batch(torch.arange(30), 0).pixels.zero_()
    assert torch.equal(views.images.pixels, before)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_batch(views):
    ids = torch.tensor([3, 9, 4])
    expected = views.batch(ids, 5)
    batch = views.to(torch.device("cuda")).batch(ids, 5)
    # A division may be rounded differently: one unit in the last place of values up to 2.8.
    torch.testing.assert_close(batch.pixels.cpu(), expected.pixels, rtol=0, atol=2.4e-7)
    assert torch.equal(batch.targets.cpu(), expected.targets)


def test_large_images_are_shown_to_networks_a_few_at_a_time(views):
    sides = (None, 64, 128, 224, 512, 16_384)
    assert [views.at_once(512, side) for side in sides] == [512, 512, 128, 41, 8, 1]
