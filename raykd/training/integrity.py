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
from raykd.outputs.manifest import MANIFEST, named
from raykd.recipes import OutputsRun, PreludeRun, Search, StudentRun, TeacherRun, Training
from raykd.storage import arrow
from raykd.storage.store import Store, read_recipe
from raykd.tracking.jsonl import read_metrics
from raykd.training import weights
from raykd.training.checkpointing import RESULT, Tested, Untested, read_result
from raykd.training.route_results import DECISIONS, is_complete, read_decisions
from raykd.training.sweep_sheets import read_sheets

_TRAININGS = (TeacherRun, PreludeRun, StudentRun)
_SUM = re.compile(r"-([0-9a-f]{24})\.arrow$")  # in the name of a pack's shard


@dataclass
class Audit:
    """Artefacts that were checked, and their faults."""

    sound: dict[str, int]  # kind -> how many artefacts are as they were written
    faults: list[RaykdError]

    def check(self, kind: str, check: Callable[..., Iterable[RaykdError]], *arguments: Any) -> None:
        """Add the faults that `check(*arguments)` returns or raises for one artefact."""
        before = len(self.faults)
        try:
            self.faults += check(*arguments)
        except RaykdError as error:
            self.faults.append(error)
        self.sound[kind] = self.sound.get(kind, 0) + (len(self.faults) == before)


def audit(store: Store) -> Audit:
    """Every artefact of a store but its caches: recipes, results, metrics and checksums."""
    report = Audit({}, [])
    for kind in (TeacherRun, PreludeRun, StudentRun, Search):
        for folder in store.finished(kind.kind):
            report.check(kind.kind, _faults_at, store, kind, folder)
    # Files that no recipe names.
    images = store.root / "images"
    files = {
        "images": (images.glob(f"[0-9a-f]*/{image_index.MARKER}"), _faults_of_images),
        "stamps": ((images / "stamps").glob("[!.]*"), _faults_of_stamp),
        "hashes": (image_index.contents_folder(store).glob("[!.]*.arrow"), _faults_of_hashes),
        "packs": ((images / "packs").glob(f"*/{pack_format.MARKER}"), _faults_of_pack),
        "weights": ((store.root / "weights").glob("[!.]*"), _faults_of_weights),
        "sweeps": ((store.root / "sweeps").glob("*"), _faults_of_sweep),
    }
    for kind, (paths, check) in files.items():
        for path in sorted(paths):
            report.check(kind, check, store, path)
    return report


def audit_of(store: Store, runs: Iterable[Training | Search]) -> Audit:
    """Audit of the finished artefacts among some recipes, and of their images."""
    report, markers = Audit({}, []), dict[Path, None]()
    for run in dict.fromkeys(runs):
        report.check(run.kind, lambda run=run: faults(store, run) if store.has(run) else ())
        data = run.student.data if isinstance(run, Search) else run.data
        if isinstance(data, ResolvedData):
            markers[folder_of(store, data, data.digest) / image_index.MARKER] = None
        source = None if isinstance(run, Search) else run.weights
        if source and source.startswith("sha256:"):
            path = store.root / "weights" / source.removeprefix("sha256:")
            report.check("weights", _faults_of_weights, store, path)
    for marker in markers:
        report.check("images", _faults_of_images, store, marker)
    return report


def _faults_at(store: Store, kind: type[Training | Search], folder: Path) -> Iterator[RaykdError]:
    """Faults of a finished artefact, by its folder."""
    return faults(store, read_recipe(kind, folder))


def _faults_of_sweep(store: Store, folder: Path) -> Iterable[RaykdError]:
    """Faults of a sweep's sheets."""
    read_sheets(store, folder.name)
    return ()


def _faults_of_images(store: Store, marker: Path) -> Iterator[RaykdError]:
    """Faults of images: their facts, and the files that those have checksums of."""
    folder = marker.parent
    kind = in_memory.Facts if "-" in folder.name else image_index.Facts
    facts = image_index.read_record(kind, marker)
    image_index.check_folder(folder, facts.digest, facts.splits)
    for split, content in facts.splits.items():
        checksums = content if isinstance(content, dict) else {f"{split}.arrow": content}
        for name, checksum in checksums.items():
            path = store.pull(folder / name) if is_below(name) else folder
            yield from _faults_of_file(path, checksum)


def _faults_of_hashes(store: Store, path: Path) -> Iterator[RaykdError]:
    """Faults of the hashes of images, whose file's name ends in its checksum."""
    return _faults_of_file(path, path.stem.rpartition("-")[2])


def _faults_of_pack(store: Store, marker: Path) -> Iterator[RaykdError]:
    """Faults of a pack in the store: shards, whose names have checksums, and indices."""
    folder = marker.parent
    facts = pack_format.read_json(Files.at(folder), pack_format.MARKER)
    for content in facts["splits"].values():
        matches = {name: _SUM.search(name) for name in content["shards"]}
        shards = {name: match[1] for name, match in matches.items() if match}
        hashes = content.get("contents", {})
        for name, checksum in {**shards, **content["index"], **hashes}.items():
            yield from _faults_of_file(folder / name if is_below(name) else folder, checksum)


def _faults_of_file(path: Path, checksum: Any) -> Iterator[RaykdError]:
    if not path.is_file() or arrow.file_checksum(path) != checksum:
        yield CacheCorrupt(
            f"{path}: the file is missing or was altered; remove {path.parent} and run again"
        )


def _faults_of_weights(store: Store, path: Path) -> Iterator[RaykdError]:
    """Faults of a copy of a weights file, whose name is its digest."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != path.name[:64]:
        yield CacheCorrupt(
            f"{path}: the weights are missing or were altered; remove the file, and name the one "
            "that it is a copy of as weights"
        )


def _faults_of_stamp(store: Store, path: Path) -> Iterable[RaykdError]:
    image_index.read_record(image_index.Summary, path)
    return ()


def progress_of(store: Store, cache: OutputsRun) -> str:
    """Progress of a cache that is being built, in words."""
    folder = store.path(cache)
    shards = [named(path.name, 0) for path in folder.glob("view-*.arrow")]
    if not shards and not (folder / MANIFEST).exists():
        return "not begun"
    rows = sum(len(shard.part) for shard in shards if shard is not None)
    return f"{rows:,} rows in {len(shards)} shards so far"


def faults(store: Store, run: Training | Search) -> Iterator[RaykdError]:
    """Faults of a finished training (result, metrics, weights), or of a search's decisions."""
    folder = store.path(run)
    if isinstance(run, Search):
        if not is_complete(run, read_decisions(store, run)):
            yield CacheCorrupt(
                f"{store.where(folder / DECISIONS)}: decisions of a finished search are "
                "missing; `raykd run` of its experiment measures anew, and trains nothing"
            )
        return
    result = read_result(folder, Untested if isinstance(run, PreludeRun) else Tested)
    checksums = weights.recorded_checksums(folder)
    try:
        read_metrics(folder, None, result)
    except RaykdError as error:
        yield error
    for name in sorted({*checksums, *_required_files(store, run)}):
        try:
            weights.checked(store.pull(folder / name))
        except RaykdError as error:
            yield error


def finish_again(store: Store, run: Training) -> bool:
    """Finish an artefact that lacks only its marker; True where it was one.

    A run that was stopped between its result and its marker leaves that, and so does a lost marker.
    """
    if not (store.path(run) / RESULT).is_file():
        return False
    report = Audit({}, [])
    report.check(run.kind, faults, store, run)
    if report.faults:
        return False
    store.finish(run)
    return True


def _required_files(store: Store, run: Training) -> list[str]:
    """Names of the weights files without which a training is not finished."""
    if isinstance(run, PreludeRun):
        return [weights.STUDENT] if run.model is not None else []
    return [weights.anchor_path(store, run, anchor).name for anchor in run.anchors()]
