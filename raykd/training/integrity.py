"""Audit of a store: checks that the files of artefacts are as they were written."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.core.errors import CacheCorrupt, RaykdError
from raykd.core.safe_names import is_below
from raykd.data import image_index, in_memory
from raykd.data.dataset import folder_of
from raykd.data.recipe import ResolvedData
from raykd.data.sources import pack_format
from raykd.data.sources.files import Files
from raykd.outputs.manifest import MANIFEST
from raykd.recipes import LogitsRun, PreludeRun, Search, StudentRun, TeacherRun, Training
from raykd.storage import arrow
from raykd.storage.store import Store, read_recipe
from raykd.tracking.jsonl import read_metrics
from raykd.training import weights
from raykd.training.checkpointing import RESULT, Tested, Untested, read_result
from raykd.training.route_results import DECISIONS, is_complete, read_decisions
from raykd.training.sweep_sheets import read_sheets

_TRAININGS = (TeacherRun, PreludeRun, StudentRun)
_SUM = re.compile(r"-([0-9a-f]{24})\.arrow$")  # in the name of a pack's shard
_Check = Callable[[], Iterator[RaykdError]]


@dataclass
class Audit:
    """Artefacts that were checked, and their faults."""

    sound: dict[str, int]  # kind -> how many artefacts are as they were written
    faults: list[RaykdError]

    def look(self, kind: str, check: _Check) -> None:
        """Look at one artefact."""
        before = len(self.faults)
        try:
            self.faults += check()
        except RaykdError as error:
            self.faults.append(error)
        self.sound[kind] = self.sound.get(kind, 0) + (len(self.faults) == before)


def audit(store: Store) -> Audit:
    """Every artefact of a store but its caches: recipes, results, metrics and checksums."""
    made = Audit({}, [])
    for kind in _TRAININGS:
        for folder in store.finished(kind.kind):
            made.look(kind.kind, lambda k=kind, f=folder: faults(store, read_recipe(k, f)))
    for folder in store.finished(Search.kind):
        made.look(Search.kind, lambda f=folder: _of_search(store, read_recipe(Search, f)))
    _look_at_files(store, made)
    return made


def audit_of(store: Store, runs: Iterable[Training | Search]) -> Audit:
    """Audit of the finished artefacts among some recipes, and of their images."""
    made, folders = Audit({}, []), dict[Path, None]()
    for run in dict.fromkeys(runs):

        def check(run: Training | Search = run) -> Iterator[RaykdError]:
            if not store.has(run):
                return
            yield from _of_search(store, run) if isinstance(run, Search) else faults(store, run)

        made.look(run.kind, check)
        data = run.student.data if isinstance(run, Search) else run.data
        if isinstance(data, ResolvedData):
            folders[folder_of(store, data, data.digest)] = None
        given = run.weights if isinstance(run, TeacherRun) else None
        if given and given.startswith("sha256:"):
            path = store.root / "weights" / given.removeprefix("sha256:")
            made.look("weights", lambda p=path: _of_weights(p))
    for folder in folders:
        made.look("images", lambda f=folder: _of_images(store, f))
    return made


def _look_at_files(store: Store, made: Audit) -> None:
    """Look at what is named by no recipe: images, packs, weights that were given, sheets."""
    images = store.root / "images"
    for path in sorted(images.glob(f"[0-9a-f]*/{image_index.MARKER}")):
        made.look("images", lambda p=path: _of_images(store, p.parent))
    for path in sorted((images / "stamps").glob("[!.]*")):
        made.look("stamps", lambda p=path: _of_stamp(p))
    for path in sorted((images / "packs").glob(f"*/{pack_format.MARKER}")):
        made.look("packs", lambda p=path: _of_pack(p.parent))
    for path in sorted((store.root / "weights").glob("[!.]*")):
        made.look("weights", lambda p=path: _of_weights(p))
    for folder in sorted((store.root / "sweeps").glob("*")):
        made.look("sweeps", lambda f=folder: _of_sweep(store, f.name))


def _of_search(store: Store, search: Search) -> Iterator[RaykdError]:
    if not is_complete(search, read_decisions(store, search)):
        yield CacheCorrupt(
            f"{store.where(store.path(search) / DECISIONS)}: decisions of a finished search are "
            "missing; `raykd run` of its experiment measures anew, and trains nothing"
        )


def _of_sweep(store: Store, name: str) -> Iterator[RaykdError]:
    read_sheets(store, name)
    yield from ()


def _of_images(store: Store, folder: Path) -> Iterator[RaykdError]:
    """Faults of images: their facts, and the files that those have checksums of."""
    kind = in_memory.Facts if "-" in folder.name else image_index.Facts
    facts = image_index.read_record(kind, folder / image_index.MARKER)
    image_index.check_folder(folder, facts.digest, facts.splits)
    for split, said in facts.splits.items():
        sums = said if isinstance(said, dict) else {f"{split}.arrow": said}
        for name, checksum in sums.items():
            yield from _of_file(store.pull(folder / name) if is_below(name) else folder, checksum)


def _of_pack(folder: Path) -> Iterator[RaykdError]:
    """Faults of a pack in the store: shards, whose names have checksums, and indices."""
    facts = pack_format.read_json(Files.at(folder), pack_format.MARKER)
    for said in facts["splits"].values():
        own = {name: found[1] for name in said["shards"] if (found := _SUM.search(name))}
        for name, checksum in {**own, **said["index"]}.items():
            yield from _of_file(folder / name if is_below(name) else folder, checksum)


def _of_file(path: Path, checksum: Any) -> Iterator[RaykdError]:
    if not path.is_file() or arrow.file_checksum(path) != checksum:
        yield CacheCorrupt(
            f"{path}: the file is missing or was altered; remove {path.parent} and run again"
        )


def _of_weights(path: Path) -> Iterator[RaykdError]:
    """Faults of given weights, whose name is their digest."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != path.name[:64]:
        yield CacheCorrupt(
            f"{path}: the weights are missing or were altered; remove the file, and name the one "
            "that it is a copy of in run.teacher.weights"
        )


def _of_stamp(path: Path) -> Iterator[RaykdError]:
    image_index.read_record(image_index.Summary, path)
    yield from ()


def progress_of(store: Store, cache: LogitsRun) -> str:
    """Progress of a cache that is being built, in words."""
    ready = [*store.path(cache).glob("view-*.arrow")]
    if not ready and not (store.path(cache) / MANIFEST).exists():
        return "not begun"
    rows = sum(int(stop) - int(start) for _, start, stop in map(_range, ready))
    return f"{rows:,} rows in {len(ready)} shards so far"


def _range(path: Path) -> tuple[str, str, str]:
    """View, start and stop in a shard's name."""
    found = re.match(r"view-(\d+)-rows-(\d+)-(\d+)-", path.name)
    return found.groups() if found else ("0", "0", "0")  # pyright: ignore[reportReturnType]


def faults(store: Store, run: Training) -> Iterator[RaykdError]:
    """Faults of the result, the metrics and the weights of a finished training."""
    folder = store.path(run)
    try:
        shape = Untested if isinstance(run, PreludeRun) else Tested
        result = read_result(folder, shape)
        known = weights.known_checksums(folder)
    except RaykdError as error:
        yield error
        return
    try:
        read_metrics(folder, None, result)
    except RaykdError as error:
        yield error
    for name in sorted({*known, *_needed(store, run)}):
        try:
            weights.checked(store.pull(folder / name))
        except RaykdError as error:
            yield error


def finish_again(store: Store, run: Training) -> bool:
    """Finish an artefact that lacks only its marker; True where it was one.

    A run that was stopped between its result and its marker leaves that, and so does a lost marker.
    """
    folder = store.path(run)
    if not (folder / RESULT).is_file() or any(faults(store, run)):
        return False
    store.finish(run)
    return True


def _needed(store: Store, run: Training) -> list[str]:
    """The weights files without which a training is not finished."""
    if isinstance(run, PreludeRun):
        return [weights.STUDENT] if run.model is not None else []
    return [weights.anchor_path(store, run, anchor).name for anchor in run.anchors()]
