"""Files of a sweep in the store: a sheet per trial, and the table of all of them.

root/sweeps/<name>/trials/<trial>.json   configuration, recipe and outcome of a trial
root/sweeps/<name>/results.csv, .arrow   a line per trial
root/tune/<name>/                        Ray Tune's logs, TensorBoard's files among them

The sheets are all that a sweep is restored from.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
from pydantic import BaseModel, ConfigDict

from raykd.config.experiment import Experiment, basis
from raykd.core.errors import CacheCorrupt
from raykd.core.record import fingerprint
from raykd.recipes import AnyStudent, Search, SearchedStudent, StudentRun
from raykd.storage.store import Store, first_line, read_json
from raykd.tasks.base import HEADINGS
from raykd.tracking.jsonl import Amount
from raykd.training.checkpointing import Tested, read_result
from raykd.training.finite import is_finite
from raykd.training.result import training_seconds
from raykd.training.route_results import route_found

SCORES = (*HEADINGS, "validation_top1", "top5", "agreement", "kl")  # metrics of an epoch
_TRIAL_NAME = re.compile(r"[A-Za-z0-9_-]+")  # it is the name of a file, too
State = Literal["running", "finished", "stopped", "failed"]  # stopped: early, by the scheduler


@dataclass(frozen=True)
class Sheet:
    """One trial of a sweep."""

    trial: str  # its name: the number, with five digits
    config: dict[str, Any]  # axis -> label or number
    session: str  # names the driver that started it last
    state: State = "running"
    student: AnyStudent | None = None  # None if the values do not go together
    error: str | None = None
    seconds: float = 0.0  # since its start, waiting included
    last: dict[str, float] | None = None  # metrics of its last report
    code: int | None = None  # exit status of its error, if that is a RaykdError


def sweep_name(experiment: Experiment) -> str:
    """The experiment's name with a digest of what it varies: another space is another sweep."""
    space = experiment.space
    assert space is not None, "the experiment was read from no file"
    parts = {
        "base": basis(experiment.runs[0]).plain(),
        "run": dict(space.base),
        "grid": dict(space.grid),
        "search": {axis: domain.plain() for axis, domain in space.search.items()},
        # Left out at its default, so that sweeps from before it was there keep their names.
        "sweep": {k: v for k, v in space.sweep.plain().items() if (k, v) != ("compare", "alike")},
    }
    if experiment.plugins:
        parts["plugins"] = sorted(plugin.digest for plugin in experiment.plugins)
    text = json.dumps(parts, sort_keys=True)
    return f"{experiment.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def metric_of(experiment: Experiment) -> str:
    """The metric that trials are compared by: the task's, on held-out images if all have some."""
    chosen = experiment.space.sweep.metric if experiment.space else None
    held_out = all(basis(run).data.validation is not None for run in experiment.runs)
    headline = basis(experiment.runs[0]).task.headline
    return chosen or (f"validation_{headline}" if held_out else headline)


def with_drawn_students(experiment: Experiment, store: Store) -> tuple[Experiment, list[Sheet]]:
    """A resolved experiment with the students of its sweep as runs, and the sheets so far.

    The students of a grid are all of its combinations, begun or not; those of a search are the
    ones that were drawn.
    """
    if experiment.space is None:
        return experiment, []
    sheets = read_sheets(store, sweep_name(experiment))
    drawn = tuple(sheet.student for sheet in sheets if sheet.student is not None)
    grid = () if experiment.space.search else experiment.runs
    return replace(experiment, runs=tuple(dict.fromkeys((*grid, *drawn)))), sheets


def folder_of(store: Store, name: str) -> Path:
    """The folder of a sweep."""
    return store.root / "sweeps" / name


def write_sheet(store: Store, name: str, sheet: Sheet) -> None:
    """Write the sheet of one trial."""
    value, student = vars(sheet) | {}, sheet.student
    del value["student"]
    if isinstance(student, StudentRun):
        value["student"] = student.plain()
    elif isinstance(student, SearchedStudent):
        value["search"], value["stages"] = student.search.plain(), student.stages
    store.write_json(_path(store, name, sheet.trial), value)


def read_sheet(store: Store, name: str, trial: str) -> Sheet | None:
    """The sheet of one trial; None if it never began."""
    path = store.renew(_path(store, name, trial))
    return _read(path) if path.is_file() else None


def read_sheets(store: Store, name: str) -> list[Sheet]:
    """The sheets of all trials that began, in the order of their names."""
    paths = sorted(store.renew_all(folder_of(store, name) / "trials").glob("*.json"))
    return [_read(path) for path in paths]


def write_results(store: Store, name: str) -> Path:
    """Write the table of a sweep's trials as CSV and as Arrow; returns the CSV's path."""
    rows = [_row(store, sheet) for sheet in read_sheets(store, name)]
    columns = {
        key: [row.get(key) for row in rows] for key in dict.fromkeys(k for r in rows for k in r)
    }
    table = pa.table({key: _column(values) for key, values in columns.items()})
    folder = folder_of(store, name)
    for suffix, write in (("csv", pyarrow.csv.write_csv), ("arrow", _write_arrow)):
        sink = pa.BufferOutputStream()
        write(table, sink)
        store.write(folder / f"results.{suffix}", sink.getvalue().to_pybytes())
    return folder / "results.csv"


def _write_arrow(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _row(store: Store, sheet: Sheet) -> dict[str, Any]:
    """A trial as a row of the table: its choices, then its results."""
    row: dict[str, Any] = {"trial": sheet.trial, "state": sheet.state, **sheet.config}
    row["epochs_done"] = (sheet.last or {}).get("epochs_done")
    student = None if sheet.student is None else route_found(store, sheet.student)
    row["fingerprint"] = None if student is None else fingerprint(student)
    row |= {key: (sheet.last or {}).get(key) for key in SCORES}
    if student is not None and store.has(student):
        result = read_result(store.path(student), Tested)
        row |= dict.fromkeys(SCORES)
        if is_finite(result["last"]):  # earlier versions finished diverged trainings
            row |= {key: result["last"].get(key) for key in SCORES}
            best = result["best"]
            row |= {f"best_{key}": best[key] for key in HEADINGS if key in best}
        for key in ("parameters", "flops", "latency_ms"):
            row[key] = result.get(key)
        row["train_seconds"] = training_seconds(store, student, result)
        anchors = [a for stage in student.stages() for a in _anchors(stage)]
        row["anchors"] = "-".join(map(str, anchors))
    return row | {"seconds": sheet.seconds, "error": sheet.error}


def _anchors(stage: StudentRun) -> tuple[int, ...]:
    """The teacher's epochs that supervise a stage."""
    if stage.teacher is None or not stage.method.needs():
        return ()
    return stage.route.anchors if stage.route is not None else stage.teacher.anchors()[-1:]


def _column(values: Sequence[Any]) -> pa.Array:
    """A column; as text if its values are of several types, or if there are none."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 or kinds == {int, float}:
        return pa.array(
            [float(v) if kinds == {int, float} and v is not None else v for v in values]
        )
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _path(store: Store, name: str, trial: str) -> Path:
    """A trial's file. Raises `CacheCorrupt` if it is not the name of a trial."""
    if _TRIAL_NAME.fullmatch(trial) is None:
        raise CacheCorrupt(f"{folder_of(store, name)}: a sheet is of a trial called {trial!r}")
    return folder_of(store, name) / "trials" / f"{trial}.json"


class _SheetFile(BaseModel):
    """The content of a sheet's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trial: str
    config: dict[str, str | int | float | bool | None]
    session: str
    state: State
    error: str | None
    seconds: Amount
    last: dict[str, int | float] | None
    code: int | None = None
    student: dict[str, Any] | None = None
    search: dict[str, Any] | None = None
    stages: Literal["multi_stage", "one_stage"] | None = None


def _read(path: Path) -> Sheet:
    """Read the sheet in a file. Raises `CacheCorrupt` if it is not one."""
    advice = "remove the file, or begin anew with --fresh"
    value = read_json(path, advice=advice)
    try:
        sheet = _sheet(_SheetFile.model_validate(value))
        if sheet.trial != path.stem:
            raise ValueError(f"it is of trial {sheet.trial!r}")
        return sheet
    except ValueError as error:
        raise CacheCorrupt(
            f"{path}: not a sheet of a trial ({first_line(error)}); {advice}"
        ) from error


def _sheet(written: _SheetFile) -> Sheet:
    student: AnyStudent | None = None
    if written.student is not None:
        student = StudentRun.read(written.student)  # pyright: ignore[reportAssignmentType]
    elif written.search is not None:
        search = Search.read(written.search)
        student = SearchedStudent(search, written.stages or "multi_stage")  # pyright: ignore[reportArgumentType]
    values = dict(written)
    for key in ("student", "search", "stages"):
        del values[key]
    return Sheet(**values, student=student)
