"""Images that are decoded once, into one array of the store per split, which workers map.

Shapes: N images, H, W pixels.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raykd import arrow
from raykd.data.contents import DIGEST_DIGITS, MARKER, whole
from raykd.data.decode import decode, statistics
from raykd.data.samples import Found
from raykd.errors import CacheCorrupt
from raykd.names import is_below
from raykd.store import Store, write_json


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


def opened(store: Store, folder: Path, facts: dict[str, Any]) -> dict[str, Images]:
    """The splits of decoded images in a folder of the store."""
    splits = {}
    for split, checksum in facts["splits"].items():
        if not is_below(split):
            raise CacheCorrupt(f"{folder / MARKER}: a split is called {split!r}; remove {folder}")
        columns = arrow.read(whole(store.pull(folder / f"{split}.arrow"), checksum))
        pixels = columns["pixels"].view(-1, *facts["size"], 3)
        splits[split] = Images(pixels, columns["targets"], tuple(facts["names"]))
    return splits


def digest_of(found: Found, resize: int | None) -> str:
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


def decode_into(folder: Path, found: Found, digest: str, resize: int | None) -> None:
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
    write_json(folder / MARKER, facts)
