"""Images that two data sets have in common, by the hashes of their encoded bytes.

Shapes: N images.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raykd.data.dataset import divided, open_whole
from raykd.data.image_index import CONTENT_BYTES, load_contents
from raykd.data.recipe import ResolvedData, Split
from raykd.storage.store import Store


@dataclass(frozen=True)
class _Contents:
    """Hashes of images, which are divided as the images are."""

    codes: np.ndarray  # uint8 [N, 16]
    targets: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> "_Contents":
        """The hashes at `rows` (int64 [n])."""
        return _Contents(self.codes[rows.numpy()], self.targets[rows])


def count_shared(store: Store, data: ResolvedData, probe: ResolvedData) -> tuple[int, int] | None:
    """(N, M): N of the M test images of `probe` are training images of `data`.

    Images are the same where their files have the same bytes, however they are decoded later. None
    where the hashes of one data set are not known: it was read by an earlier version, or some of
    its images could not be decoded and were left out.
    """
    trained, judged = (_contents_of(store, one) for one in (data, probe))
    if trained is None or judged is None:
        return None
    seen, test = trained["train"], judged["test"]
    return int(np.isin(test, seen).sum()), len(test)


def _contents_of(store: Store, data: ResolvedData) -> dict[Split, np.ndarray] | None:
    """The hash of each image of the splits of a recipe, [N] of 16 bytes."""
    splits, facts = open_whole(store, data)
    labels = {split: images.targets.numpy() for split, images in splits.items()}
    contents = load_contents(store, facts.digest, facts.names, labels)
    if contents is None:
        return None
    train, test, validation = divided(
        data, {name: _Contents(contents[name], images.targets) for name, images in splits.items()}
    )
    parts: dict[Split, _Contents | None] = {"train": train, "test": test, "validation": validation}
    return {
        split: np.ascontiguousarray(part.codes).view(f"S{CONTENT_BYTES}").reshape(-1)
        for split, part in parts.items()
        if part is not None
    }
