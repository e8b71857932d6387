"""Results of an experiment in Python: its students with their numbers, as a table and as data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from raykd.config.search_space import METRICS
from raykd.core.errors import ConfigError
from raykd.core.registry import nearest
from raykd.core.text_table import as_text
from raykd.methods import METHODS
from raykd.prediction import Predictor
from raykd.prediction import load as load_network
from raykd.recipes import Search, StudentRun
from raykd.report import Report, console_table
from raykd.report.files import to_rows
from raykd.report.types import Run
from raykd.storage.store import Store

if TYPE_CHECKING:  # half a second to import
    import pandas as pd

    from raykd.export import ExportResult

Format = Literal["safetensors", "torch", "onnx"]


class StudentResult:
    """One student of an experiment, trained or not yet."""

    def __init__(self, store: Store, label: str, run: Run) -> None:
        self.label = label  # as in the table
        self.run = run  # as in the report
        self._store = store

    @property
    def fingerprint(self) -> str:
        """The name of its folder in the store."""
        return self.run.fingerprint

    @property
    def seed(self) -> int:
        """Seed of its initial weights and of the order of its images."""
        return self.run.seed

    @property
    def state(self) -> str:
        """Progress: "finished", "epoch 3 of 30", "not started", ..."""
        return self.run.state()

    @cached_property
    def recipe(self) -> StudentRun:
        """All that determines it."""
        return StudentRun.read(self.run.recipe)

    @property
    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The numbers of every epoch so far, as {"epoch": 0, "loss": ..., "top1": ..., ...}."""
        return self.run.metrics

    @property
    def result(self) -> dict[str, Any]:
        """Its numbers at the end: "last" and "best" epoch, parameters, seconds, hardware, ...

        Raises `ConfigError` where it is not finished.
        """
        self._check_finished()
        assert self.run.result is not None
        return self.run.result

    @property
    def folder(self) -> Path:
        """Its folder, or its search's while the route is open; of a URL, this node's copy."""
        searched = self.run.anchors is not None and self.run.result is None
        return self._store.root / (Search if searched else StudentRun).kind / self.fingerprint

    def load(self) -> Predictor:
        """The network in eval mode on the CPU, an `nn.Module`: scores of normalised pixels.

        It has `preprocess`, `classes` and `predict(paths)`. Raises `ConfigError` where it is not
        finished, `CacheCorrupt` where its weights were altered.
        """
        self._check_finished()
        return load_network(self._store, self.recipe)

    def export(
        self, folder: str | PathLike[str], formats: Sequence[Format] = (), *, int8: bool = False
    ) -> "ExportResult":
        """Write it to a folder as files that need no raykd, in some formats or in all.

        int8: also an ONNX graph of 8 bits.

        Raises `ConfigError` where it is not finished or the folder holds other files,
        `ExportFailed` where a file answers otherwise than the network.
        """
        from raykd.export import export  # seconds to import

        self._check_finished()
        return export(self._store, self.recipe, Path(folder), formats, int8=int8)

    def _check_finished(self) -> None:
        if self.run.result is None:
            raise ConfigError(
                f"{self.label}, seed {self.seed} ({self.fingerprint}): it is not finished "
                f"({self.state}); raykd.run goes on with it"
            )

    def __repr__(self) -> str:
        network = self.run.recipe["model"]
        return f"<{self.label} {network} seed {self.seed}: {self.state} ({self.fingerprint[:8]})>"


@dataclass(frozen=True, repr=False)
class Results:
    """The students of an experiment in the order of its table, with what the store has of them.

    A sequence of students: `results[0]`, `len(results)`, `for student in results`. `results["kd"]`
    are those of a line of the table or of a method.
    """

    report: Report  # all that the page shows, as plain values
    store: Store
    page: Path | None = None  # the page in the store; None where it could not be written
    made: Mapping[str, int] = field(default_factory=dict)  # teachers, caches, ...: number made now
    reused: Mapping[str, int] = field(default_factory=dict)  # number that the store had
    seconds: float = 0.0
    grid: Any = None  # Ray Tune's ResultGrid, of a sweep that had trials left

    @cached_property
    def students(self) -> tuple[StudentResult, ...]:
        """All students, the best line of the table first."""
        return tuple(
            StudentResult(self.store, group.label, run)
            for group in self.report.ranked()
            for run in group.runs
        )

    @overload
    def __getitem__(self, key: int) -> StudentResult: ...
    @overload
    def __getitem__(self, key: str) -> list[StudentResult]: ...
    def __getitem__(self, key: int | str) -> StudentResult | list[StudentResult]:
        """One student by its place, or all of a line of the table or of a method.

        Raises `LookupError` where there is none.
        """
        if not isinstance(key, str):
            return self.students[key]
        chosen = [student for student in self.students if student.label == key]
        if not chosen and key in METHODS:
            name = METHODS.canonical(key)
            chosen = [s for s in self.students if s.run.recipe["method"]["name"] == name]
        if not chosen:
            labels = dict.fromkeys(student.label for student in self.students)
            hint = nearest(key, labels) or f"; there are: {', '.join(labels)}"
            raise KeyError(f"no student is called {key!r}{hint}")
        return chosen

    def __iter__(self) -> Iterator[StudentResult]:
        return iter(self.students)

    def __len__(self) -> int:
        return len(self.students)

    def best(self, metric: str | None = None) -> StudentResult:
        """The student that is best by a metric of the last epoch, as "top1" or "loss".

        metric: default: the task's headline, of validation images if all students hold some out.
        Raises `ConfigError` where no finished student has it.
        """
        finished = [s for s in self.students if s.run.result is not None and s.run.is_finite()]
        if metric is None:
            held_out = f"validation_{self.report.metric}"
            every = finished and all(held_out in student.result["last"] for student in finished)
            metric = held_out if every else self.report.metric
        having = [student for student in finished if metric in student.result["last"]]
        if not having:
            known = sorted({name for student in finished for name in student.result["last"]})
            raise ConfigError(
                f"no finished student has the metric {metric!r}"
                + (nearest(metric, known) or f"; there are: {', '.join(known) or 'none yet'}")
            )
        sign = 1 if METRICS.get(metric, "min") == "max" else -1
        return max(having, key=lambda student: sign * student.result["last"][metric])

    def to_pandas(self) -> "pd.DataFrame":
        """A row per run of the table, teachers included, with the columns of `raykd report --csv`.

        Those without any value are left out. Beside them, each key of `run` in which students
        differ, such as run.optim.lr.
        """
        import pandas as pd

        rows = to_rows(self.report)
        recipes = [dict(_leaves(student.run.recipe, "run")) for student in self.students]
        keys = dict.fromkeys(key for recipe in recipes for key in recipe if key != "run.seed")
        varied = [key for key in keys if len({repr(r.get(key)) for r in recipes}) > 1]
        for student, recipe in zip(self.students, recipes, strict=True):
            chosen = {key: recipe.get(key) for key in varied}
            for row in rows:
                if row["fingerprint"] == student.fingerprint:
                    row |= chosen
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

    @property
    def table(self) -> str:
        """The table that the console shows, as text."""
        return as_text(console_table(self.report))

    def __repr__(self) -> str:
        return self.table


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The dotted keys of a tree with their values, lists whole."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}")
