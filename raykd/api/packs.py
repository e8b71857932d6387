"""Datasets of other libraries, written as a pack: images stay encoded, in Arrow shards."""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raykd.core.errors import DataError
from raykd.core.words import counted
from raykd.data.packing import Packed, Packing, source_of
from raykd.data.sources import SOURCES
from raykd.data.sources.files import Files
from raykd.data.sources.hub_datasets import fetched
from raykd.data.sources.pack_format import join_names
from raykd.data.sources.tables import read_tables
from raykd.storage.filesystem import is_url
from raykd.tracking.console import Terminal

_ROWS = 256  # images that are held at a time


def pack(
    dataset: Any,
    folder: str | PathLike[str],
    *,
    test: Any = None,
    classes: Iterable[str] | None = None,
    workers: int = 0,
    quiet: bool = False,
) -> str:
    """Write images as a pack into a folder, or its URL; its location, as `data` of an experiment.

        place = raykd.pack(train, "pack", test=test)
        raykd.Experiment(raykd.Student("resnet20", data=raykd.Data("table"), ...), data=place)

    dataset: the training images: a `torch.utils.data.Dataset` of (image, label) or of images alone,
    a `ray.data.Dataset` with columns image and label, or the path of images that `raykd pack`
    reads. Images are PIL's, uint8 arrays [H, W, 3] or [H, W], uint8 tensors [3, H, W], or encoded
    bytes; pixels are kept without loss, as PNG. So leave out transforms that augment, normalise or
    make float tensors: raykd does that. Labels are integers from 0 or texts. test: the test images;
    without them a share is held out (`holdout` of the data). classes: names of the classes;
    default: those of `dataset.classes`, or the labels. workers: Ray workers that pack a path; 0:
    this process.

    Every image is asked for once, in order, and held twice on the disk for a while. The same images
    again find their shards there. Raises `DataError` where an item is none of these.
    """
    terminal, files = Terminal(quiet=quiet), Files.at(str(folder))
    if isinstance(dataset, str | PathLike):
        pack_source(str(dataset), str(folder), terminal, workers=workers)
        return files.root
    names = getattr(dataset, "classes", None) if classes is None else [*classes]
    listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    parent = None if is_url(str(folder)) else Path(folder).expanduser().absolute().parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=parent) as temporary:
        digest = hashlib.sha256(json.dumps(names if listed else None).encode())
        labelled = False
        for split, images in (("train", dataset), ("test", test)):
            if images is not None:
                path = Path(temporary) / f"{split}.arrow"
                given = tuple(names) if listed and names else ()
                labelled |= _spool(images, split, path, given, digest)
        read = replace(read_tables(temporary, labelled), stamp=digest.hexdigest())
        _write(Packing(read, type(dataset).__name__, files), terminal)
    return files.root


def pack_source(
    source: str,
    destination: str,
    terminal: Terminal,
    *,
    name: str | None = None,
    workers: int = 0,
    address: str | None = None,
    shard_mb: float = 256.0,
    labelled: bool = True,
    skip_bad: bool = False,
    decode: bool = False,
) -> tuple[Packing, dict[str, Any]]:
    """Pack images at a path or URL, with progress; the pack, and facts: images, bytes, rates.

    source: "-" with a `name` whose dataset has a downloader. name: kind of dataset; None: what the
    source looks like. address: of a Ray cluster for `workers`; None: a running one, or one
    of our own. decode: decode every image, to find damaged ones.
    """
    root = None if source == "-" else fetched(source)
    kind = name or source_of(source)
    terminal.say(f"looking for the images of {source} ({kind})")
    dataset = SOURCES[kind](root, labels=labelled)
    packing = Packing(
        dataset,
        kind if root is None else Files.at(root).describe(""),
        Files.at(destination),
        shard_mb,
        skip_bad=skip_bad,
        decode=decode,
    )
    existing = packing.begin()
    _say_plan(packing, sum(1 for names in existing.values() if names), terminal)
    if workers:
        from raykd.config.scale import Scale
        from raykd.launch.cluster import connected
        from raykd.launch.pool import make_shards

        with connected(Scale(address=address), terminal.say, workers):
            packed, seconds = followed(packing, make_shards(packing, existing, workers), terminal)
    else:
        packed, seconds = followed(packing, packing.make_all(existing), terminal)
    return packing, _facts(packing, packing.finish(packed), packed, seconds)


def _say_plan(packing: Packing, complete: int, terminal: Terminal) -> None:
    unread = sorted(packing.dataset.about.unread.items())
    if unread:
        kinds = ", ".join(f"{ascii(suffix)[1:-1]} {count:,}" for suffix, count in unread)
        terminal.say(f"files that are not read: {kinds}")
    names = packing.dataset.names
    classes = f"of {len(names)} classes" if names else "without labels"
    terminal.say(
        f"{counted(packing.images, 'images')} {classes}, {packing.volume / 1e6:,.1f} MB, "
        f"into {counted(len(packing.parts), 'shards')}"
        + (f", of which {complete} are there" if complete else "")
    )


def _facts(
    packing: Packing, finished: dict[str, Any], packed: Sequence[Packed], seconds: float
) -> dict[str, Any]:
    """Facts about a finished pack: images, bytes, rates per second."""
    made = [one for one in packed if not one.adopted]
    return {
        "pack": packing.files.describe(""),
        "digest": finished["digest"],
        "classes": len(finished["classes"]),
        "images": {split: said["rows"] for split, said in finished["splits"].items()},
        "skipped": finished["skipped"],
        "bytes": sum(one.shard.bytes for one in packed),
        "shards": len(packed),
        "made": len(made),
        "images_per_second": sum(len(one.part) for one in made) / seconds,
        "bytes_per_second": sum(one.shard.bytes for one in made) / seconds,
    }


def _write(packing: Packing, terminal: Terminal) -> None:
    """Make the shards in this process, with progress."""
    packed, _ = followed(packing, packing.make_all(packing.begin()), terminal)
    packing.finish(packed)


def followed(
    packing: Packing, shards: Iterable[Packed], terminal: Terminal
) -> tuple[list[Packed], float]:
    """The shards of a pack as they are made, with progress on the console, and the seconds."""
    packed, done, volume, started = [], 0, 0, time.monotonic()
    with terminal.showing():
        task = terminal.task("packing", packing.images, "image")
        for pack_part in shards:
            packed.append(pack_part)
            done += len(pack_part.part)
            volume += pack_part.shard.bytes
            task.update(done, f"{volume / (time.monotonic() - started) / 1e6:.0f} MB/s")
            for fault in pack_part.bad if packing.skip_bad else ():
                terminal.say(f"left out: {fault}")
    return packed, time.monotonic() - started


def _spool(items: Any, split: str, path: Path, names: tuple[str, ...], digest: Any) -> bool:
    """Write the items of a split as one table, and add them to a hash; True if it has labels."""
    writer: pa.RecordBatchFileWriter | None = None
    images: list[bytes] = []
    labels: list[int | str] = []
    labelled, count = False, 0

    def flush() -> None:
        nonlocal writer
        columns: dict[str, pa.Array] = {"image": pa.array(images, pa.large_binary())}
        if labels:
            columns["label"] = pa.array(labels)
        batch = pa.record_batch(columns)
        metadata = {"classes": join_names(names)} if names and labels else None
        fields = [field.with_nullable(False) for field in batch.schema]
        schema = pa.schema(fields, metadata)
        batch = pa.RecordBatch.from_arrays([*columns.values()], schema=schema)
        writer = writer or pa.ipc.new_file(str(path), schema)
        writer.write_batch(batch)
        images.clear()
        labels.clear()

    try:
        for image, label in _items(items):
            place = f"{split} image {count}"
            data, number = _encoded(image, place), _label(label, place)
            digest.update(f"{split} {number!r} {len(data)} ".encode() + data)
            images.append(data)
            labels.extend([] if number is None else [number])
            count, labelled = count + 1, labelled or number is not None
            if len(images) == _ROWS:
                flush()
        if images or writer is None:
            flush()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{split} images: some labels are integers and others texts, or some are missing "
            f"({error}); give all of one kind"
        ) from error
    finally:
        if writer is not None:
            writer.close()
    return labelled


def _items(items: Any) -> Iterator[tuple[Any, Any]]:
    """Every image with its label, which is None where there is none."""
    if type(items).__module__.startswith("ray.data"):
        for row in items.iter_rows():
            yield row["image"], row.get("label")
        return
    known = hasattr(items, "__len__") and hasattr(items, "__getitem__")
    for item in (items[number] for number in range(len(items))) if known else items:
        if isinstance(item, tuple | list) and len(item) > 1:
            image, label, *_ = item
            yield image, label
        else:
            yield item, None


def _encoded(image: Any, place: str) -> bytes:
    """An image as encoded bytes: those that it is, or a PNG file with its pixels."""
    if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
        return image["bytes"]  # as Hugging Face's datasets have it
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if not isinstance(image, Image.Image):
        image = _picture(image, place)
    out = io.BytesIO()
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _picture(image: Any, place: str) -> Image.Image:
    """An array or a tensor of pixels as a picture."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and not isinstance(image, np.ndarray):  # a tensor's [C, H, W]
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise DataError(
            f"{place}: expected a picture of PIL, encoded bytes, or uint8 pixels (arrays [H, W, 3] "
            f"or [H, W], tensors [3, H, W]), got {type(image).__name__} of {pixels.dtype} "
            f"{list(pixels.shape)}; leave out what the dataset does to its pictures"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _label(label: Any, place: str) -> int | str | None:
    """A label as a plain integer or text."""
    label = label.item() if hasattr(label, "item") else label
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return label
    raise DataError(f"{place}: expected a label that is an integer or a text, got {label!r}")
