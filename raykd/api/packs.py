"""Datasets of other libraries, written as a pack: images stay encoded, in Arrow shards."""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raykd.core.errors import DataError
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
    default: those of `dataset.classes`, or the labels.

    Every image is asked for once, in order, and held twice on the disk for a while. The same images
    again find their shards there. Raises `DataError` where an item is none of these.
    """
    terminal, files = Terminal(quiet=quiet), Files.at(str(folder))
    if isinstance(dataset, str | PathLike):
        location = fetched(str(dataset))
        read = SOURCES[source_of(str(dataset))](location)
        _write(Packing(read, Files.at(location).describe(""), files), terminal)
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
