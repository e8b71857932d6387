"""Images as one uint8 tensor: found once, decoded once into the store, mapped by every worker.

Shapes: N dataset rows, H, W pixels.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from raykd import arrow, bits
from raykd.data.augment import Augment
from raykd.data.decode import decode, statistics
from raykd.data.order import stratified
from raykd.data.samples import Found, Triple
from raykd.data.sources import SOURCES
from raykd.errors import CacheCorrupt, ConfigError, DataError
from raykd.record import Record
from raykd.store import Store, read_json, write_json

_MARKER = "images.json"
DIGEST_DIGITS = 20
Split = Literal["train", "test", "validation"]


class Data(Record):
    """Which images, which rows of them, and how they are augmented and normalised.

    `digest`, `classes`, `size`, `mean` and `std` are filled in when the images are read; a
    value that is given is checked (digest, classes, size) or used (mean, std).
    """

    name: str  # of `raykd show datasets`
    resize: int | None = Field(default=None, ge=1)  # shorter side, then a centre crop; None: as is
    holdout: float = Field(default=0.2, gt=0, lt=1)  # test share, where there is no test split
    validation: float | None = Field(
        default=None, gt=0, lt=1
    )  # share of the rest that no one trains on
    limit: int | None = Field(default=None, ge=1)  # train on this many rows, classes in proportion
    augment: Augment = Augment()
    seed: int = Field(default=0, ge=0)  # of holdout, validation, limit, views; not of the order
    digest: str = ""  # of labels, encoded images, class names, resize, the field's mean and std
    classes: int | None = None
    size: tuple[int, int] | None = None  # (H, W) in pixels
    mean: Triple | None = None  # per channel, of pixels in 0 to 1
    std: Triple | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        SOURCES[name]
        return name

    def test(self) -> "Data":
        """The recipe of the test rows: whole, and as they are."""
        return self.held_out().model_copy(update={"validation": None})

    def held_out(self) -> "Data":
        """The recipe of the validation rows: as they are."""
        return self.model_copy(update={"augment": Augment(), "limit": None})


@dataclass(frozen=True)
class Images:
    """Decoded images and their labels."""

    pixels: Tensor  # uint8 [N, H, W, 3]
    targets: Tensor  # int64 [N]
    names: tuple[str, ...]  # of the classes

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Images":
        """The same images on `device`."""
        return Images(self.pixels.to(device), self.targets.to(device), self.names)

    def take(self, rows: Tensor) -> "Images":
        """The images at `rows` (int64 [n]), renumbered from 0."""
        return Images(self.pixels[rows], self.targets[rows], self.names)


def read(store: Store, data: Data, path: Path | None) -> Data:
    """`data` with what only its files can tell, which are decoded into the store on first use.

    `path` is where the files lie; None: where the dataset's own downloader puts them. Where
    the digest is known and its images are in the store, the files are not touched.
    """
    folder = _folder(store, data.digest)
    if not (data.digest and store.whole(folder, _MARKER)):
        found = SOURCES[data.name](path)
        digest = _digest(found, data.resize)
        if data.digest and data.digest != digest:
            raise DataError(
                f"run.data.digest: expected {data.digest}, but the files have {digest}; "
                "they are not the images that this recipe was made with"
            )
        folder = _folder(store, digest)
        if not store.whole(folder, _MARKER):
            _decode_into(folder, found, digest, data.resize)
            store.share(folder, _MARKER)
    facts = read_json(folder / _MARKER)
    for field in ("classes", "size"):
        given, real = getattr(data, field), facts[field]
        if given is not None and json.loads(json.dumps(given)) != real:
            raise ConfigError(f"run.data.{field}: expected {given}, but the images have {real}")
    return data.model_copy(
        update={
            "digest": facts["digest"],
            "classes": facts["classes"],
            "size": tuple(facts["size"]),
            "mean": data.mean or tuple(facts["mean"]),
            "std": data.std or tuple(facts["std"]),
        }
    )


def open_images(store: Store, data: Data) -> tuple[Images, Images]:
    """The training and the test images of a recipe that `read` completed."""
    train, test, _ = _opened(store, data)
    return train, test


def open_split(store: Store, data: Data, split: Split) -> Images:
    """The images of one split of a recipe that `read` completed."""
    train, test, validation = _opened(store, data)
    if split == "validation":
        if validation is None:
            raise ConfigError(
                "run.data.validation: no images are held out; say which share of the training "
                "images nothing is trained on, such as 0.1"
            )
        return validation
    return train if split == "train" else test


def _opened(store: Store, data: Data) -> tuple[Images, Images, Images | None]:
    """Training, test and validation images; None where no share is held out for those."""
    folder = _folder(store, data.digest)
    if not data.digest or not store.whole(folder, _MARKER):
        raise DataError(
            f"{folder}: the decoded images of {data.name!r} are not in the store; "
            "`raykd run` puts them there where it can read the files"
        )
    facts = read_json(folder / _MARKER)
    splits = {}
    for split in facts["splits"]:
        path = store.pull(folder / f"{split}.arrow")
        columns = arrow.read(_whole(path, facts["splits"][split]))
        pixels = columns["pixels"].view(-1, *facts["size"], 3)
        splits[split] = Images(pixels, columns["targets"], tuple(facts["names"]))
    train, test, validation = splits["train"], splits.get("test"), None
    if test is None:
        train, test = _apart(train, data.holdout, "holdout", data.seed, bits.HOLDOUT)
    if data.validation is not None:
        train, validation = _apart(train, data.validation, "validation", data.seed, bits.VALIDATION)
    if data.limit is not None:
        if data.limit > len(train):
            raise ConfigError(
                f"run.data.limit: {data.limit} is more than the {len(train)} training samples"
            )
        train = train.take(stratified(train.targets, data.limit, data.seed, bits.LIMIT))
    return train, test, validation


def _apart(
    images: Images, share: float, field: str, seed: int, stream: int
) -> tuple[Images, Images]:
    """The images without a share of them, classes in proportion, and that share."""
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise ConfigError(
            f"run.data.{field}: {share} of {len(images)} images is {count}, which leaves none to "
            f"{'test' if field == 'holdout' else 'validate'} or none to train on"
        )
    held = stratified(images.targets, count, seed, stream)
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[held] = False
    return images.take(keep.nonzero().squeeze(1)), images.take(held)


def _folder(store: Store, digest: str) -> Path:
    return store.root / "images" / digest


@functools.lru_cache(maxsize=64)
def _whole(path: Path, checksum: str) -> Path:
    """The path, once its bytes are seen to be as they were written; looked at once a process."""
    if not path.is_file() or arrow.file_checksum(path) != checksum:
        raise CacheCorrupt(
            f"{path}: the decoded images are missing or were altered; remove {path.parent} and "
            "run again"
        )
    return path


def _digest(found: Found, resize: int | None) -> str:
    """20 hex digits of everything that determines the decoded images and their normalisation."""
    constants = [found.names, resize, found.mean, found.std]
    hasher = hashlib.sha256(json.dumps(constants).encode())
    for split, samples in found.splits.items():
        hasher.update(f"{split} {len(samples.labels)}".encode())
        hasher.update(np.ascontiguousarray(samples.labels, dtype="<i8").tobytes())
        for image in samples.images:
            data = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
    return hasher.hexdigest()[:DIGEST_DIGITS]


def _decode_into(folder: Path, found: Found, digest: str, resize: int | None) -> None:
    """Decode every split into an Arrow file of the folder; the marker is written last."""
    size: tuple[int, int] | None = None
    mean, std = found.mean, found.std
    checksums: dict[str, str] = {}
    for split, samples in found.splits.items():
        pixels = decode(samples, resize, size)
        size = (pixels.shape[1], pixels.shape[2])
        if split == "train" and (mean is None or std is None):
            mean, std = statistics(pixels)
        columns = {
            "pixels": torch.from_numpy(pixels).view(len(pixels), -1),
            "targets": torch.from_numpy(samples.labels),
        }
        checksums[split] = arrow.write(folder / f"{split}.arrow", columns)
    facts = {
        "digest": digest,
        "splits": checksums,
        "names": list(found.names),
        "classes": len(found.names),
        "size": size,
        "mean": mean,
        "std": std,
    }
    write_json(folder / _MARKER, facts)
