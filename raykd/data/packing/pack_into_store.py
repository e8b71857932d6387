"""Datasets whose images lie in no file as they are, packed into the store to be read from there.

root/images/packs/<key>/   a pack, whose name follows from what its files are
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace

from raykd.core.errors import DataError
from raykd.data.image_index import Say
from raykd.data.packing.pack_sources import stock_of
from raykd.data.packing.packer import Packed, Packing
from raykd.data.sources.byte_ranges import Located, pack
from raykd.data.sources.files import Files, below
from raykd.data.sources.pack_shards import is_pack
from raykd.data.sources.raw_split import listed, numbered
from raykd.storage.store import Store

_SAY_SECONDS = 10.0


def into_store(
    store: Store, name: str, root: str | None, say: Say, *, skip_bad: bool = False
) -> Located:
    """Where a dataset's images lie; where they lie nowhere as they are, they are packed before.

    `root` is a path, a URL, or None, where the dataset has a downloader of its own. A pack that
    was begun is gone on with. Raises `DataError` for what cannot be an image, which `skip_bad`
    leaves out.
    """
    stock = stock_of(name, root)
    if isinstance(stock, Located):
        return stock
    text = json.dumps([name, root, stock.stamp, skip_bad])
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    files = Files.at(below(store.url, f"images/packs/{key}"))
    source = name if root is None else Files.at(root).describe("")
    packing = Packing(stock, source, files, skip_bad=skip_bad)
    if not _is_whole(files):
        say(f"packing {packing.images:,} images of {name!r} into {files.describe('')}")
        packing.finish(_told(packing, say))
    return replace(pack(files.root), about=stock.about)


def _is_whole(files: Files) -> bool:
    try:
        return is_pack(files)
    except DataError:
        return False  # it was begun


def _told(packing: Packing, say: Say) -> Iterator[Packed]:
    """Every shard as it is made, and now and then a line that says how far that is."""
    started = spoken = time.monotonic()
    done = 0
    for packed in packing.make_all(packing.begin()):
        done += len(packed.part)
        if packed.skipped:
            left = numbered(packed.skipped, "image")
            say(f"{left} that cannot be used, left out:\n{listed(packed.bad, packed.skipped)}")
        now = time.monotonic()
        if now - spoken > _SAY_SECONDS:
            spoken, left = now, (now - started) / done * (packing.images - done) / 60
            say(f"packing: {done:,} of {packing.images:,} images, about {left:.0f} min left")
        yield packed
