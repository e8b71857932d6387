"""The images of a recipe: read once, taken into the store, opened by every worker.

Small images are decoded into one uint8 tensor per split; those of a `stream` stay where they are.

Shapes: N dataset rows, H, W pixels.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.errors import ConfigError, DataError
from raykd.data import image_index, in_memory
from raykd.data.image_index import DIGEST_DIGITS, MARKER, read_record
from raykd.data.in_memory import Images, decode_faults, decode_into
from raykd.data.loading.sampler import stratified
from raykd.data.packing import into_store
from raykd.data.recipe import Data, ResolvedData, Split
from raykd.data.sources import SOURCES, hub_datasets
from raykd.data.sources.byte_ranges import Encoded
from raykd.data.sources.files import Files
from raykd.data.sources.pack_format import check_shards
from raykd.data.sources.splits import Dataset, count_of, list_faults, summary, unusable_error
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store

Say = Callable[[str], None]


class Labelled(Protocol):
    """Rows that can be divided by their labels."""

    @property
    def targets(self) -> Tensor:
        """Labels int64 [N]."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Self:
        """The rows `rows` (int64 [n])."""
        ...


Rows = TypeVar("Rows", bound=Labelled)
AnyImages = Images | Encoded  # decoded in memory, or not yet
Facts = in_memory.Facts | image_index.Facts


def read(
    store: Store,
    data: Data,
    path: str | Path | None,
    say: Say = lambda text: None,
    *,
    skip_bad: bool = False,
) -> ResolvedData:
    """`data` with the values that its files have; they are taken into the store on first use.

    `path` is the location of the files: a path, hf:owner/name for a dataset of the Hugging Face
    Hub, or a URL if they are to be streamed; None stands for the folder of the dataset's
    downloader. If `data` has a digest whose images are in the store, the files are not touched.
    `say` receives messages about what was read and what was left out.
    Images that cannot be used are a `DataError` that names them all; with `skip_bad`, they are
    left out.
    """
    root = None if path is None else Files.at(hub_datasets.local(path)).root
    if data.stream is None and root is not None and is_url(root):
        raise ConfigError(
            f"data.path: {path} is a URL, whose images are decoded while a run goes on; add "
            "run.data.stream, such as {size: 224}"
        )
    facts = _find_facts(store, data, root)
    if facts is None:
        if path is not None:
            hub_datasets.fetched(path)
        facts = _read_facts(store, data, root, say, skip_bad=skip_bad)
    if isinstance(facts, in_memory.Facts):
        if facts.skipped and not skip_bad:
            raise unusable_error(facts.bad, facts.skipped)
        size = facts.size
    else:
        assert data.stream is not None, "encoded images are those of a stream"
        size = (data.stream.size, data.stream.size)
    for field, real in (("classes", len(facts.names)), ("size", size)):
        expected = getattr(data, field)
        if expected is not None and expected != real:
            shown = json.dumps(real)
            raise ConfigError(f"run.data.{field}: expected {expected}, but the images have {shown}")
    mean, std = SOURCES[data.name].normalisation
    update = {
        "digest": facts.digest,
        "classes": len(facts.names),
        "size": size,
        "mean": data.mean or mean,
        "std": data.std or std,
    }
    fields = {name: getattr(data, name) for name in Data.model_fields}
    return ResolvedData.model_construct(**(fields | update))


def _find_facts(store: Store, data: Data, root: str | None) -> Facts | None:
    """Facts that the store has about a recipe's images; None without them.

    None, too, where the images of a stream are below another root now, and where they have labels
    that the recipe has not, or the other way round.
    """
    folder = folder_of(store, data, data.digest)
    if not data.digest or not store.whole(folder, MARKER):
        return None
    if data.stream is None:
        facts = read_record(in_memory.Facts, folder / MARKER)
    else:
        facts = read_record(image_index.Facts, folder / MARKER)
        if root not in (None, facts.location):
            return None
    return facts if bool(facts.names) == (data.labels == "classes") else None


def class_names(store: Store, data: ResolvedData) -> tuple[str, ...]:
    """The names of the classes of a recipe's images, which must be in the store."""
    facts = _find_facts(store, data, None)
    if facts is None:
        raise _not_there(store, data)
    return facts.names


def _read_facts(store: Store, data: Data, root: str | None, say: Say, *, skip_bad: bool) -> Facts:
    """Facts about a dataset from its files, which are then in the store, decoded or as byte ranges.

    Raises `DataError` if the recipe expects other images.
    """
    labels = data.labels == "classes"
    if data.stream is None:
        dataset = SOURCES[data.name](root, labels=labels)
    else:
        dataset = into_store(store, data.name, root, say, labels=labels, skip_bad=skip_bad)
    taken, reading = image_index.find_summary(store, data.name, dataset, skip_bad=skip_bad), None
    if taken is None:
        more = decode_faults if data.stream is None else None
        reading = image_index.read_images(dataset, say, skip_bad=skip_bad, more=more)
        taken = reading.summary
    if data.digest and data.digest != taken.digest:
        raise DataError(
            f"run.data.digest: expected {data.digest}, but the files have {taken.digest}; "
            "they are not the images that this recipe was made with"
        )
    image_index.save_contents(
        store, taken.digest, dataset.contents if reading is None else reading.contents
    )
    folder = folder_of(store, data, taken.digest)
    if data.stream is not None:
        whole = image_index.is_index_of(store, folder, dataset)
    else:
        whole = store.whole(folder, MARKER)
    if not whole and reading is None:
        reading = image_index.usable_rows(dataset, taken, say, skip_bad=skip_bad)
    if not whole and reading is not None:
        if data.stream is not None:
            image_index.write(store, dataset, reading)
        else:
            if dataset.digest or dataset.contents:  # a pack, whose images were not read
                check_shards(Files.at(image_index.root_of(dataset)))
            decode_into(folder, dataset, reading, data.resize, say, skip_bad=skip_bad)
        store.share(folder, MARKER)
    image_index.save_summary(store, data.name, dataset, taken, skip_bad=skip_bad)
    kind = in_memory.Facts if data.stream is None else image_index.Facts
    facts = read_record(kind, folder / MARKER)
    _report(say, data, dataset, taken, facts)
    return facts


def _report(
    say: Say, data: Data, dataset: Dataset, taken: image_index.Summary, facts: Facts
) -> None:
    """Say what was read, and what was left out."""
    counts, skipped, bad = taken.counts, taken.skipped, taken.bad
    if isinstance(facts, in_memory.Facts):
        counts, skipped, bad = facts.counts, skipped + facts.skipped, bad + facts.bad
    say(summary(dataset.names, counts, dataset.about, holdout=data.holdout, empty=taken.empty))
    if skipped:
        left = count_of(skipped, "image")
        say(f"{left} that cannot be used, left out:\n{list_faults(bad, skipped)}")


def open_images(store: Store, data: Data) -> tuple[AnyImages, AnyImages]:
    """The training and the test images of a recipe that `read` completed."""
    train, test, _ = _open_all(store, data)
    return train, test


def open_split(store: Store, data: Data, split: Split) -> AnyImages:
    """The images of one split of a recipe that `read` completed."""
    train, test, validation = _open_all(store, data)
    if split == "validation":
        if validation is None:
            raise ConfigError(
                "run.data.validation: no images are held out; say which share of the training "
                "images nothing is trained on, such as 0.1"
            )
        return validation
    return train if split == "train" else test


def _open_all(store: Store, data: Data) -> tuple[AnyImages, AnyImages, AnyImages | None]:
    """Training, test and validation images; None where no share is held out for those."""
    splits, _ = open_whole(store, data)
    return divided(data, splits)


def open_whole(
    store: Store, data: Data
) -> tuple[Mapping[str, AnyImages], in_memory.Facts | image_index.Facts]:
    """The splits that the files have, before any share is held out, and their facts."""
    folder = folder_of(store, data, data.digest)
    if not data.digest or not store.whole(folder, MARKER):
        raise _not_there(store, data)
    reader = in_memory if data.stream is None else image_index
    facts, splits = reader.open_splits(store, folder)
    return splits, facts


def _not_there(store: Store, data: Data) -> DataError:
    return DataError(
        f"{folder_of(store, data, data.digest)}: the images of {data.name!r} are not in the store; "
        "`raykd run` puts them there where it can read the files"
    )


def divided(data: Data, splits: Mapping[str, Rows]) -> tuple[Rows, Rows, Rows | None]:
    """Training, test and validation rows; None where no share is held out for those."""
    train, test, validation = splits["train"], splits.get("test"), None
    if test is None:
        train, test = _hold_out(train, data.holdout, "holdout", data.seed, keyed_random.HOLDOUT)
    if data.validation is not None:
        train, validation = _hold_out(
            train, data.validation, "validation", data.seed, keyed_random.VALIDATION
        )
    if data.limit is not None:
        if data.limit > len(train):
            raise ConfigError(
                f"run.data.limit: {data.limit} is more than the {len(train)} training samples"
            )
        train = train.take(stratified(train.targets, data.limit, data.seed, keyed_random.LIMIT))
    return train, test, validation


def _hold_out(images: Rows, share: float, field: str, seed: int, stream: int) -> tuple[Rows, Rows]:
    """Stratified split: (remaining, held out)."""
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


def folder_of(store: Store, data: Data, digest: str) -> Path:
    """The folder of images in the store. Raises `ConfigError` for what cannot be a digest."""
    if re.fullmatch(r"[0-9a-f]*", digest) is None:
        raise ConfigError(f"run.data.digest: expected {DIGEST_DIGITS} hex digits, got {digest!r}")
    if data.stream is None:
        return in_memory.folder_of(store, digest, data.resize)
    return image_index.folder_of(store, digest)
