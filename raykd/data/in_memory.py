"""Images that are decoded once, into one array of the store per split, which workers map.

    root/images/<digest>-<side>/   uint8 pixels and labels, brought to that many pixels a side
    root/images/<digest>-original/ the same at the size that the images have

Shapes: N images, H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from raykd.core.errors import CacheCorrupt, DataError
from raykd.core.record import Record
from raykd.data.image_index import (
    MARKER,
    Reading,
    Say,
    check_folder,
    check_labels,
    checked,
    read_record,
)
from raykd.data.sources.encoded_image import rgb_image
from raykd.data.sources.splits import NAMED, Dataset, check_filled, count_of, unusable_of
from raykd.data.sources.splits import Images as EncodedImages
from raykd.storage import arrow
from raykd.storage.store import Store, write_json

Side = Annotated[int, Field(ge=1)]


class Facts(Record):
    """The content of images.json for decoded images."""

    digest: str
    names: tuple[str, ...]  # class names
    size: tuple[Side, Side]  # (H, W)
    splits: dict[str, str]  # the checksum of each split's file
    counts: dict[str, int]  # images of each split
    skipped: int = 0  # images that could not be decoded
    bad: tuple[str, ...] = ()  # reasons, for some of them


@dataclass(frozen=True)
class Images:
    """Decoded images and their labels."""

    pixels: Tensor  # uint8 [N, H, W, 3]
    targets: Tensor  # int64 [N]
    names: tuple[str, ...]  # class names

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Images":
        """A copy of the images on `device`."""
        return Images(self.pixels.to(device), self.targets.to(device), self.names)

    def take(self, rows: Tensor) -> "Images":
        """The images at `rows` (int64 [n]), renumbered from 0."""
        return Images(self.pixels[rows], self.targets[rows], self.names)


def folder_of(store: Store, digest: str, resize: int | None) -> Path:
    """The folder of decoded images of a size in the store."""
    return store.root / "images" / f"{digest}-{resize or 'original'}"


def open_splits(store: Store, folder: Path) -> tuple[Facts, dict[str, Images]]:
    """The splits of decoded images in a folder of the store, and their facts."""
    facts, splits = read_record(Facts, folder / MARKER), {}
    check_folder(folder, facts.digest, facts.splits)
    for split, checksum in facts.splits.items():
        columns = arrow.read(checked(store.pull(folder / f"{split}.arrow"), checksum))
        pixels, targets = columns["pixels"], columns["targets"]
        if pixels[:1].numel() != facts.size[0] * facts.size[1] * 3:
            raise CacheCorrupt(
                f"{folder / MARKER}: the images beside it are not of {facts.size[0]} x "
                f"{facts.size[1]} pixels; remove {folder} and run again"
            )
        check_labels(folder, targets, facts.names)
        splits[split] = Images(pixels.view(-1, *facts.size, 3), targets, facts.names)
    return facts, splits


def decode_faults(dataset: Dataset, rows: Mapping[str, np.ndarray]) -> list[str]:
    """Reasons why images at the rows of each split cannot be decoded."""
    faults: list[str] = []
    for split, split_rows in rows.items():
        split_faults: dict[int, str] = {}
        decode_all(dataset.splits[split].images, split_rows, 1, faults=split_faults)
        faults += split_faults.values()
    return faults


def decode_into(
    folder: Path,
    dataset: Dataset,
    reading: Reading,
    resize: int | None,
    say: Say,
    *,
    skip_bad: bool,
) -> Facts:
    """Decode every split into an Arrow file of the folder; the marker is written last.

    Raises `DataError` that names all images that cannot be decoded; with `skip_bad` they are left
    out.
    """
    size: tuple[int, int] | None = None
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    faults: list[str] = []
    for split, rows in reading.rows.items():
        bad: dict[int, str] = {}
        pixels = decode_all(dataset.splits[split].images, rows, resize, size, faults=bad)
        size = size or ((pixels.shape[1], pixels.shape[2]) if pixels.size else None)
        faults += bad.values()
        arrays[split] = pixels, dataset.labels[split][rows]
        if bad:
            pixels, targets = arrays[split]
            arrays[split] = np.delete(pixels, [*bad], axis=0), np.delete(targets, [*bad])
    if faults and not skip_bad:
        raise unusable_of(faults, dataset.about)
    labels = {split: targets for split, (_, targets) in arrays.items()}
    check_filled(dataset.names, labels, dataset.about)
    assert size is not None, "a dataset has a split"
    volume = sum(pixels.nbytes for pixels, _ in arrays.values())
    counts = {split: len(targets) for split, targets in labels.items()}
    images = count_of(sum(counts.values()), "decoded image")
    say(f"writing {images}, {volume / 1e6:,.2f} MB, into {folder}")
    checksums = {}
    for split, (pixels, targets) in arrays.items():
        columns = {
            "pixels": torch.from_numpy(pixels).view(len(pixels), -1),
            "targets": torch.from_numpy(targets),
        }
        checksums[split] = arrow.write(folder / f"{split}.arrow", columns)
    facts = Facts(
        digest=reading.summary.digest,
        names=dataset.names,
        size=size,
        splits=checksums,
        counts=counts,
        skipped=len(faults),
        bad=tuple(faults[:NAMED]),
    )
    write_json(folder / MARKER, facts.plain())
    return facts


def decode_all(
    images: EncodedImages,
    rows: np.ndarray | None = None,
    resize: int | None = None,
    expected: tuple[int, int] | None = None,
    faults: dict[int, str] | None = None,
) -> np.ndarray:
    """Images as uint8 [N, H, W, 3], all or those at `rows`, which rise; grey ones become RGB.

    `resize` brings the shorter side to that many pixels and crops the centre; without it
    every image must have the size of the first one, or the `expected` (H, W). Raises
    `DataError`, naming the file or the row of an image that cannot be decoded or fits not. With
    `faults`, the reason is stored there instead, keyed by the image's position in `rows`, and its
    pixels stay uninitialised.
    """
    out: np.ndarray | None = None
    rows = np.arange(len(images)) if rows is None else rows
    index, wanted = -1, set(rows.tolist())
    for row, image in enumerate(images):
        if row not in wanted:
            continue
        index += 1
        try:
            if isinstance(image, DataError):
                raise image
            rgb = rgb_image(image, images.origin(row))
        except DataError as error:
            if faults is None:
                raise
            faults[index] = str(error)
            continue
        if resize is not None:
            rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
        pixels = np.asarray(rgb)
        shape = pixels.shape[:2]
        if expected is None:
            expected = (shape[0], shape[1])
        if shape != expected:
            raise DataError(
                f"{images.origin(row)}: {shape[1]} x {shape[0]} pixels, but the images before "
                f"have {expected[1]} x {expected[0]}; set run.data.resize to bring all to one size"
            )
        if out is None:
            out = np.empty((len(rows), *expected, 3), dtype=np.uint8)
        out[index] = pixels
    return np.empty((len(rows), 0, 0, 3), np.uint8) if out is None else out
