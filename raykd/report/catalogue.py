"""Listings: artefacts in a store, and the names that an experiment may use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykd.core.descriptions import summary
from raykd.core.errors import CacheCorrupt, RaykdError
from raykd.core.record import fingerprint
from raykd.core.types import CACHEABLE, Signal
from raykd.data.sources import SOURCES
from raykd.methods import METHODS, Method
from raykd.methods.columns import FromColumns
from raykd.methods.presets import PRESETS
from raykd.models import NETWORKS, parameter_count
from raykd.models.staged import on_meta
from raykd.outputs.codecs import CODECS
from raykd.outputs.manifest import MANIFEST, Manifest, manifest_of
from raykd.recipes import OutputsRun, PreludeRun, Search, StudentRun, TeacherRun, Training
from raykd.storage import locks
from raykd.storage.store import Store, read_recipe
from raykd.tasks import TASKS
from raykd.tasks.base import HEADINGS
from raykd.tracking.jsonl import read_metrics
from raykd.training import calibrations
from raykd.training.cache_verify import compare
from raykd.training.checkpointing import Tested, Untested, read_result
from raykd.training.inputs import open_cache
from raykd.training.integrity import progress_of
from raykd.training.route_results import DECISIONS, anchors_of, is_complete, read_decisions
from raykd.training.runs import default_device

Row = dict[str, Any]


def catalogue(listing: str, store: Store) -> list[Row]:
    """Rows of `raykd show LISTING`, as its table has them."""
    rows = records(listing, store)
    if listing == "methods":
        return [_method_in_words(row) for row in rows]
    for row in rows if listing == "caches" else ():
        row["megabytes"] = round(row.pop("bytes") / 1e6, 2)
    return [{key: _in_words(value) for key, value in row.items()} for row in rows]


def _in_words(value: Any) -> Any:
    """A value as a cell of a table."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return round(value, 4) if isinstance(value, float) else value


def records(listing: str, store: Store) -> list[Row]:
    """Rows of `raykd show LISTING` as data, whose keys `docs/json.md` describes."""
    if listing in _NAMES:
        return _NAMES[listing]()
    recipe, row = _ARTEFACTS[listing]
    rows = [
        {"fingerprint": folder.name} | row(store, folder, read_recipe(recipe, folder))
        for folder in store.finished(recipe.kind)
    ]
    # Of the measures that no student has, top-1 alone is shown.
    absent = {name for name in HEADINGS if name != "top1"}
    absent -= {name for row in rows for name in row if row[name] is not None}
    return [{name: row[name] for name in row if name not in absent} for row in rows]


def verify_caches(
    store: Store, caches: Sequence[OutputsRun] | None, rows: int
) -> tuple[list[Row], list[RaykdError]]:
    """A row per sound cache, and an error per damaged one; all of the store's if none is chosen.

    Every byte is read, and `rows` random rows are compared with the teacher's outputs. A cache
    that another process is building has a row, too, whose `building` says how far it is.
    """
    results: list[Row] = []
    errors: list[RaykdError] = []
    for item in store.finished(OutputsRun.kind) if caches is None else caches:
        try:
            run = item if isinstance(item, OutputsRun) else read_recipe(OutputsRun, item)
            results.append(_verified(store, run, rows))
        except RaykdError as error:
            errors.append(error)
    return results, errors


def _verified(store: Store, run: OutputsRun, rows: int) -> Row:
    """Row of a cache that is sound or being built; raises `CacheCorrupt` otherwise."""
    row = {
        "fingerprint": fingerprint(run),
        "teacher": f"{run.teacher.model} after {run.anchor} epochs",
        "split": run.split,
        "codec": run.label,
    }
    manifest = manifest_of(store, run) if _missing(store, run) is None else None
    views = [] if manifest is None else manifest.views()
    if manifest is None or not views:
        building = _building(store, run)
        if building is None:
            raise CacheCorrupt(_lack(store, run, manifest))
        none = dict.fromkeys(("difference", "kl", "agreement", "lost"))
        return row | {"views": 0, "shards": 0, "rows": 0} | none | {"building": building}
    cache = open_cache(store, run, views, default_device())
    for view in views:
        cache.check(view)
    store.pull_all(cache.folder, calibrations.BEGINNING)
    for path in sorted(cache.folder.glob(f"{calibrations.BEGINNING}*")):
        calibrations.read(path)
    counts = {"views": len(views), "shards": len(manifest.shards)}
    return row | counts | asdict(compare(store, run, rows, default_device())) | {"building": None}


def _lack(store: Store, run: OutputsRun, manifest: Manifest | None) -> str:
    """Message about a cache that holds no complete view and that no process is building."""
    folder = store.where(store.path(run))
    if (source := _missing(store, run)) is not None:
        where = store.where(store.path(source))
        return (
            f"{folder}: its {_role(source)} {where} is missing or not finished; "
            "`raykd precompute` of its experiment makes it, and trains nothing where only its "
            "marker was lost"
        )
    if manifest is None:
        return f"{folder}: there is no manifest; `raykd precompute` makes it"
    return f"{folder}: no view is complete; `raykd precompute` goes on"


def _missing(store: Store, run: OutputsRun) -> Training | None:
    """The first training behind a cache that is not finished; None where all are."""
    return next((source for source in run.sources() if not store.has(source)), None)


def _role(source: Training) -> str:
    """Name of a training that a cache is computed by."""
    return "prelude" if isinstance(source, PreludeRun) else "teacher"


def _building(store: Store, run: OutputsRun) -> str | None:
    """Progress of a cache that is being built, or of its teacher; None if neither is."""
    owner = locks.owner(store, run, "maker")
    if owner is not None:
        return f"being built by {owner}, {progress_of(store, run)}"
    source = _missing(store, run) or run.teacher
    owner = locks.owner(store, source, "maker") or locks.owner(store, source, "writer")
    if owner is None:
        return None
    done = len(read_metrics(store.path(source)))
    return f"waiting for its {_role(source)}, which {owner} trains; {done} epochs so far"


def _teacher(store: Store, folder: Path, run: TeacherRun) -> Row:
    result = read_result(folder, Tested)
    return {
        "network": run.model,
        "data": run.data.name,
        "epochs": 0 if run.is_given else run.optim.epochs,
        "seed": run.seed,
        "parameters": result["parameters"],
        "top1": _rounded(result["last"], "top1"),
    }


def _cache(store: Store, folder: Path, run: OutputsRun) -> Row:
    manifest = manifest_of(store, run)
    if manifest is None:
        raise CacheCorrupt(
            f"{store.where(folder / MANIFEST)}: is missing, and the cache was finished; "
            "`raykd precompute` makes it again from whole shards"
        )
    beside = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "teacher": run.teacher.model,
        "anchor": run.anchor,
        "data": run.data.name,
        "split": run.split,
        "codec": run.label,
        "views": len(manifest.views()),
        "rows": manifest.rows,
        "bytes": sum(shard.bytes for shard in manifest.shards) + beside,
    }


def _prelude(store: Store, folder: Path, run: PreludeRun) -> Row:
    return {
        "what": run.method.name,
        "network": run.model,
        "teacher": run.teacher.model,
        "data": run.data.name,
        "seed": run.seed,
        "epochs": run.optim.epochs,
        "loss": round(read_result(folder, Untested)["last"]["loss"], 4),
    }


def _student(store: Store, folder: Path, run: StudentRun) -> Row:
    last = read_result(folder, Tested)["last"]
    return {
        "network": run.model,
        "data": run.data.name,
        "method": run.method.name,
        "seed": run.seed,
        "teacher": run.teacher.model if run.teacher else None,
        "epochs": run.optim.epochs,
        **{name: _rounded(last, name) for name in (*HEADINGS, "agreement")},
    }


def _rounded(metrics: Mapping[str, Any], name: str) -> float | None:
    """A percentage among the last epoch's metrics; None where it was not measured."""
    return round(metrics[name], 2) if name in metrics else None


def _search(store: Store, folder: Path, run: Search) -> Row:
    decisions = read_decisions(store, run)
    if not is_complete(run, decisions):
        raise CacheCorrupt(
            f"{store.where(folder / DECISIONS)}: decisions of a finished search are missing; "
            "`raykd run` of its experiment measures anew, and trains nothing"
        )
    return {
        "method": run.student.method.label,
        "network": run.student.model,
        "teacher": run.student.teacher.model if run.student.teacher else None,
        "seed": run.student.seed,
        "threshold": run.threshold,
        "anchors": list(anchors_of(run, decisions)),
    }


def _methods() -> list[Row]:
    rows = []
    for name, kind in METHODS.items():
        method = kind()  # pyright: ignore[reportCallIssue]
        before = method.prelude()
        needs, of_student = method.needs(), method.student_needs()
        cacheable = bool(needs) and not needs & ~CACHEABLE
        columns = isinstance(method, FromColumns)
        stored = method.model_copy(update={"source": "cache"}) if columns else method
        now, cooler = _accepted(stored) if cacheable or columns else ([], [])
        rows.append(
            {
                "method": name,
                "aliases": list(METHODS.aliases(name)),
                "reads": _signals(needs),
                "reads_of_student": _signals(of_student),
                "from_cache": cacheable if needs else None,
                "derived": [function.label for function in stored.derived()],
                "codecs": now,
                "codecs_at_temperature_1": cooler,
                "prelude_epochs": before.epochs if before else 0,
                "prelude_reads": _signals(before.method.needs()) if before else [],
                "label_weight": method.label_weight,
                "cost": kind.cost,
                "source": kind.title,
            }
        )
    return rows


def _signals(signals: Signal) -> list[str]:
    """The names of some signals."""
    return [str(signal) for signal in signals]


def _method_in_words(row: Row) -> Row:
    """A method as a row of the table."""
    reads, of_student = (", ".join(row[key]) for key in ("reads", "reads_of_student"))
    codecs = ", ".join(row["codecs"])
    codecs += "".join(f"; at T = 1 {name}" for name in row["codecs_at_temperature_1"])
    before = f"{row['prelude_epochs']} epochs on {', '.join(row['prelude_reads'])}"
    reads = reads or "nothing"
    return {
        "method": ", ".join((row["method"], *row["aliases"])),
        "reads": reads
        if row["reads"] == row["reads_of_student"]
        else (f"{reads}; {of_student} of the student"),
        "from_cache": "yes, `source: cache`"
        if row["derived"] and not row["from_cache"]
        else {True: "yes", False: "no", None: "-"}[row["from_cache"]],
        "codecs": codecs,
        "before": before if row["prelude_epochs"] else "",
        "label_weight": str(row["label_weight"]),
        "cost": row["cost"],
        "source": row["source"],
    }


def _accepted(method: Method) -> tuple[list[str], list[str]]:
    """The codecs that a method accepts as it is, and those that it would at temperature 1."""

    def names(method: Method) -> list[str]:
        accepted = []
        for name, kind in CODECS.items():
            readings = kind().readings()  # pyright: ignore[reportCallIssue]
            serving = [reading for reading, codec in readings.items() if codec.serves(method)]
            if serving:
                few = len(serving) < len(readings)
                accepted.append(f"{name} ({' or '.join(serving)})" if few else name)
        return accepted

    now = names(method)
    if "temperature" not in type(method).model_fields:
        return now, []
    cooler = names(method.model_copy(update={"temperature": 1.0}))
    return now, [name for name in cooler if name not in now]


def _presets() -> list[Row]:
    return [
        {"preset": name, "method": preset.written(), "source": preset.source}
        for name, preset in PRESETS.items()
    ]


def _tasks() -> list[Row]:
    rows: list[Row] = []
    for name, kind in TASKS.items():
        task = kind()  # pyright: ignore[reportCallIssue]
        rows.append(
            {
                "task": name,
                "learns_from_labels": "yes" if kind.labelled else "no",
                "compared_by": HEADINGS[task.headline],
                "about": summary(kind.__doc__),
            }
        )
    return rows


def _models() -> list[Row]:
    rows: list[Row] = []
    for name in NETWORKS:
        with on_meta():
            network = NETWORKS[name](10)
        rows.append({"network": name, "parameters": parameter_count(network), "for": "10 classes"})
    others = {"torchvision/NAME": "any classifier of torchvision", "timm/NAME": "any model of timm"}
    rows += [{"network": name, "parameters": None, "for": text} for name, text in others.items()]
    return rows


def _datasets() -> list[Row]:
    return [{"dataset": name, "what": source.title} for name, source in SOURCES.items()]


# Listing -> recipe of its artefacts, and the columns of one beside its fingerprint.
_ARTEFACTS: dict[str, tuple[Any, Callable[[Store, Path, Any], Row]]] = {
    "teachers": (TeacherRun, _teacher),
    "caches": (OutputsRun, _cache),
    "preludes": (PreludeRun, _prelude),
    "students": (StudentRun, _student),
    "searches": (Search, _search),
}
# Listing of what an experiment may name -> its rows.
_NAMES: dict[str, Callable[[], list[Row]]] = {
    "methods": _methods,
    "presets": _presets,
    "tasks": _tasks,
    "models": _models,
    "datasets": _datasets,
}
LISTINGS = (*_ARTEFACTS, *_NAMES)
