"""Names of classes that say to which queries the images of a gallery are relevant, or junk.

A name says it by the places of the queries, as "relevant: 0 2; junk: 1". So digests, stores and
packs keep a list as they keep labels.

Shapes: N images of the gallery, P pairs of a query and one of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

WORDS = ("relevant", "junk")
_NEITHER = "irrelevant"


def class_name(said: Mapping[str, Sequence[int]]) -> str:
    """The name of the class of images of which this is said: places of queries, by word."""
    parts = [f"{word}: {' '.join(map(str, sorted(said[word])))}" for word in WORDS if word in said]
    return "; ".join(parts) or _NEITHER


def pairs_of(names: Sequence[str], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that are relevant, and pairs that are junk, by class names and labels int64 [N].

    Each is int64 [P, 2]: places of a query and of an image, in the order of the queries.
    """
    said: list[dict[str, list[int]]] = []
    for name in names:
        parts = [part.partition(": ") for part in name.split("; ") if name != _NEITHER]
        said.append({word: [*map(int, places.split())] for word, _, places in parts})

    def pairs(word: str) -> Tensor:
        found = [
            (query, row)
            for row, label in enumerate(labels.tolist())
            for query in said[label].get(word, ())
        ]
        return torch.tensor(sorted(found), dtype=torch.int64).view(-1, 2).to(labels.device)

    return pairs("relevant"), pairs("junk")
