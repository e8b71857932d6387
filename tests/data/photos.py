"""Photographs of different sizes, as JPEG files in class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

from raykd.data.dataset import read
from raykd.data.recipe import Data, Stream
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.crop import Crop
from raykd.storage.store import Store
from tests.data.files import encoded, put


def photo(seed: int, height: int, width: int) -> Image.Image:
    """A smooth coloured picture, with some grain."""
    source = np.random.default_rng(seed)
    coarse = source.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = source.normal(0, 6, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def photos(root: Path, classes: int = 3, each: int = 8, side: int = 40) -> Path:
    """A folder with `train` and `test`; no two pictures are alike, nor all of one size."""
    for split, count in (("train", each), ("test", max(2, each // 4))):
        for label in range(classes):
            for number in range(count):
                seed = 1000 * label + number + (500 if split == "test" else 0)
                height, width = side + 3 * (number % 4), side + 5 * (number % 3)
                image = photo(seed, height, width)
                put(root / split / f"class{label}" / f"{number:03d}.jpg", encoded(image, "JPEG"))
    return root


def streamed(store: Store, root: Path | str, size: int = 24, **changes) -> Data:
    """The data of such a folder, read into the store."""
    values = {
        "name": "folder",
        "stream": Stream(size=size, resize=size + 4),
        "augment": Augment(crop=Crop(scale=(0.2, 1.0)), flip=True),
    }
    return read(store, Data(**(values | changes)), str(root))
