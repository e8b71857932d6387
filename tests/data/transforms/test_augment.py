"""The pixels of a view: keyed by the sample, complete over a cycle, and what a plain crop gives."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from raykd.data.transforms.augment import Augment
from tests.each import each
from tests.tiers import slow_but

AUGMENTS = [
    Augment(pad=1),
    Augment(flip=True),
    Augment(pad=1, flip=True),
    Augment(pad=2, flip=True),
    Augment(pad=4, flip=True),
]
NAMES = [f"pad {a.pad}{' flip' * a.flip}" for a in AUGMENTS]


def pictures(count: int, height: int = 6, width: int = 8) -> Tensor:
    """uint8 [count, height, width, 3], no two pixels of an image alike, none black."""
    pixels = torch.arange(1, count * height * width * 3 + 1) * 37 % 255 + 1
    return pixels.view(count, height, width, 3).to(torch.uint8)


def plain(image: np.ndarray, pad: int, row: int, column: int, flip: bool) -> np.ndarray:
    """Pillow's border, crop and mirror."""
    height, width, _ = image.shape
    padded = ImageOps.expand(Image.fromarray(image), border=pad, fill=0)
    crop = padded.crop((column, row, column + width, row + height))
    return np.asarray(ImageOps.mirror(crop) if flip else crop)


@each("augment", slow_but(AUGMENTS, AUGMENTS[2::2]), ids=NAMES)
def test_a_sample_looks_the_same_in_any_batch_and_order(augment):
    pixels, ids = pictures(40), torch.arange(40) * 11
    whole = augment.apply(pixels, ids, 3, seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment.apply(pixels[order], ids[order], 3, seed=5), whole[order])
    for size in (1, 7, 39):
        parts = [
            augment.apply(some, rows, 3, seed=5)
            for some, rows in zip(pixels.split(size), ids.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


@each("augment", slow_but(AUGMENTS, AUGMENTS[2::2]), ids=NAMES)
def test_a_view_is_a_plain_pad_crop_and_flip(augment):
    pixels, ids = pictures(30), torch.arange(30)
    for view in range(4):
        shown = augment.apply(pixels, ids, view, seed=1)
        geometry = torch.stack([part.long() for part in augment.geometry(ids, view, seed=1)], dim=1)
        for image, one, (row, column, flip) in zip(pixels, shown, geometry.tolist(), strict=True):
            expected = plain(image.numpy(), augment.pad, row, column, bool(flip))
            assert np.array_equal(one.numpy(), expected)


@each("augment", slow_but(AUGMENTS, AUGMENTS[2::2]), ids=NAMES)
def test_each_crop_and_flip_of_a_sample_is_shown_once_in_every_cycle(augment):
    ids, count = torch.arange(25), augment.views()
    side = 2 * augment.pad + 1
    for cycle in range(3):
        seen = []
        for view in range(cycle * count, (cycle + 1) * count):
            row, column, flip = augment.geometry(ids, view, seed=7)
            assert row.min() >= 0 and row.max() < side
            assert column.min() >= 0 and column.max() < side
            seen.append(flip.long() * side**2 + row * side + column)
        every = torch.stack(seen, dim=1).sort(dim=1).values
        assert torch.equal(every, torch.arange(count).expand(25, count))


def test_samples_cycles_and_seeds_go_through_the_views_in_orders_of_their_own():
    augment = Augment(pad=4, flip=True)
    ids, count = torch.arange(50), augment.views()

    def orders(first: int, seed: int) -> Tensor:
        views = [augment.geometry(ids, view, seed) for view in range(first, first + count)]
        return torch.stack([r * 9 + c + 81 * f for r, c, f in views], dim=1)

    one = orders(0, seed=0)
    assert len(one.unique(dim=0)) == 50
    for other in (orders(count, seed=0), orders(0, seed=1)):
        assert not (one == other).all(dim=1).any()


def test_a_random_sample_s_view_is_uniform_over_the_geometries():
    augment, ids = Augment(pad=4, flip=True), torch.arange(162 * 200)
    row, column, flip = augment.geometry(ids, 17, seed=0)
    seen = torch.bincount(flip.long() * 81 + row * 9 + column, minlength=162).double()
    # 161 degrees of freedom, quantile 0.999; the key is fixed.
    assert float(((seen - 200) ** 2 / 200).sum()) < 222.2


def test_the_number_of_views_is_that_of_crops_times_flips():
    assert [a.views() for a in AUGMENTS] == [9, 2, 18, 50, 162]
    assert Augment().views() == 1


def test_without_augmentation_the_pixels_are_returned_unchanged():
    pixels = pictures(5)
    for view in range(3):
        assert Augment().apply(pixels, torch.arange(5), view, seed=view) is pixels


def test_augmenting_leaves_the_images_as_they_were():
    pixels = pictures(5)
    before = pixels.clone()
    Augment(pad=2, flip=True).apply(pixels, torch.arange(5), 1, seed=0)
    assert torch.equal(pixels, before)


def test_the_border_is_black():
    white = torch.full((200, 4, 4, 3), 255, dtype=torch.uint8)
    shown = Augment(pad=2).apply(white, torch.arange(200), 0, seed=0)
    row, column, _ = Augment(pad=2).geometry(torch.arange(200), 0, seed=0)
    kept = (4 - (row - 2).abs()) * (4 - (column - 2).abs())
    assert torch.equal((shown == 255).all(-1).sum(dim=(1, 2)), kept)
    assert set(shown.unique().tolist()) == {0, 255}


def test_whoever_changes_the_pixels_of_a_view_raises_the_revision():
    """Caches of the old pixels must not be read with the new ones, so both change together."""
    augment = Augment(pad=4, flip=True)
    hasher = hashlib.sha256()
    for view in (0, 1, 161, 162, 1000):
        hasher.update(augment.apply(pictures(64), torch.arange(64), view, seed=3).numpy().tobytes())
    assert (Augment.revision, hasher.hexdigest()[:20]) == (1, "d6391ecc96ce80add561")


@pytest.mark.gpu
def test_a_gpu_shows_the_same_pixels():
    augment, pixels, ids = Augment(pad=4, flip=True), pictures(64), torch.arange(64)
    shown = augment.apply(pixels.cuda(), ids.cuda(), 5, seed=2)
    assert torch.equal(shown.cpu(), augment.apply(pixels, ids, 5, seed=2))
