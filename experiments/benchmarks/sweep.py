"""Cost of a sweep beyond its students: the teacher's work once, for any number of students.

    python -m experiments.benchmarks.sweep            # both parts, some ten minutes on 2 cores
    python -m experiments.benchmarks.sweep --part cost --students 8
    python -m experiments.benchmarks.sweep --part leak --trials 64

cost: CPU seconds of a whole sweep of M students of KD over one teacher (this process and all of
Ray's), over those of the teacher, its views and M students that learn from the labels alone,
trained here without Ray. What the cluster takes to start is left out of the ratios and stated. Of
the second ratio, so is what a sweep takes that learns next to nothing: as many trials of one epoch
of few images, whose processes start, import torch and say how it went like any others.

leak: many trials of a tiny student, with the object store, the open files and the memory of all
processes, and the disk that the sweep takes, over time; and the driver's own CPU time.
"""

import contextlib
import importlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ray
from ray._private.internal_api import memory_summary

from experiments.benchmarks.measure import Row, show
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.launch.cluster import connected
from raykd.launch.executor import execute
from raykd.launch.sweep.driver import sweep
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.training.memory import keep_freed_memory

WHOLE_GRID = 32  # students, from which on starting weighs less
PSUTIL: Any = importlib.import_module("psutil")  # on the path once Ray is imported
COST = """
run:
  model: {student}
  data: {{name: digits, holdout: 0.33, limit: {rows}, augment: {{pad: 1}}}}
  teacher:
    model: resnet8x4
    data: {{name: digits, holdout: 0.33, limit: {teaching}, augment: {{pad: 1}}}}
    optim: {{epochs: {lessons}}}
  method: {method}
  optim: {{epochs: {epochs}, batch: 64}}
  views: 9
grid: {{run.seed: {seeds}}}
scale: {{workers: 1, teacher_workers: 1}}
"""
TINY = """
run:
  model: resnet8
  data: {{name: digits, holdout: 0.33, limit: 64, augment: {{pad: 1}}}}
  teacher: {{model: resnet8, optim: {{epochs: 1}}}}
  method: kd
  optim: {{epochs: 2, batch: 64}}
grid: {{run.seed: {seeds}}}
scale: {{workers: 1}}
"""


@click.command()
@click.option("--part", type=click.Choice(["cost", "leak", "both"]), default="both")
@click.option("--students", default=8, show_default=True)
@click.option("--network", default="resnet20", show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--trials", default=64, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the ratios there.")
@click.option("--quick", is_flag=True, help="Two small students and four trials.")
def main(
    part: str,
    students: int,
    network: str,
    epochs: int,
    trials: int,
    target: Path | None,
    quick: bool,
) -> None:
    """Measure, and print ratios of this one run."""
    if quick:
        students, network, epochs, trials = 2, "resnet8", 1, 4
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if part in ("cost", "both"):
            rows += cost(Path(folder) / "cost", students, network, epochs)
        if part in ("leak", "both"):
            rows += leak(Path(folder) / "leak", trials)
    show("A sweep's cost beyond its students", rows, target)


def cost(folder: Path, students: int, network: str, epochs: int) -> list[Row]:
    """The sweep's CPU seconds over those of its parts, whole and beyond starting."""

    values: dict[str, Any] = {"student": network, "seeds": list(range(students))}
    whole = {"rows": 1000, "epochs": epochs, "teaching": 1200, "lessons": 16}
    least = {"rows": 64, "epochs": 1, "teaching": 64, "lessons": 1}

    def planned(method: str, size: dict[str, int] = whole) -> Experiment:
        return parse(COST.format(method=method, **values, **size), f"bench-{method}")

    quiet, meter = Terminal(quiet=True), Meter()
    keep_freed_memory()
    here, parts = Store(folder / "here"), {}
    kd, alone = (resolve(planned(method), here) for method in ("kd", "label_only"))
    scale = Scale()
    warm = Store(folder / "warm")
    one = Experiment("warm", resolve(planned("kd", least), warm).runs[:1], scale)
    execute(one, warm, quiet)  # imports and first calls are not measured
    for name, work in (
        ("teacher and views", lambda: execute(_on(kd, scale), here, quiet, students=False)),
        (
            "label-only students",
            lambda: execute(_on(_without_teacher(alone), scale), here, quiet),
        ),
    ):
        before = meter.seconds()
        work()
        parts[name] = meter.seconds() - before
    before = meter.seconds()
    with connected(planned("kd").scale, quiet.say):
        _wake()
        started = meter.seconds() - before
        laps = []
        for number, size in enumerate((least, whole, least)):
            there = Store(folder / f"sweep-{number}")
            before = meter.seconds()
            sweep(planned("kd", size), there, quiet)
            laps.append(meter.seconds() - before)
    overhead = (laps[0] + laps[2]) / 2
    work = sum(parts.values())
    name = "sweep / (teacher + views + M label-only)"
    whole_note = (
        f"sweep of {students} {network}: {laps[1]:.1f} CPU s, over "
        + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
        + f"; the cluster's start {started:.1f} s apart"
    )
    note = (
        f"without {overhead:.1f} s ({overhead / students:.1f} s a trial) of a sweep that learns "
        "next to nothing"
    )
    return [
        Row(name, laps[1] / work, 1.2 if students < WHOLE_GRID else 1.1, "lower", whole_note),
        Row("the same beyond starting", (laps[1] - overhead) / work, 1.15, "lower", note),
    ]


def leak(folder: Path, trials: int) -> list[Row]:
    """Memory after the last trials over memory after the first ones."""
    store = Store(folder)
    experiment = parse(TINY.format(seeds=list(range(trials))), "leak")
    with connected(experiment.scale, lambda text: None):
        watch = Watch(store.root)
        before = time.process_time()
        swept = sweep(experiment, store, Terminal())
        watch.stop()
        driver = time.process_time() - before - watch.seconds
    assert swept.count("finished") == trials, "a trial failed"
    seen = [sample for sample in watch.samples if sample.trials >= min(8, trials // 4)]
    first, last = seen[0], seen[-1]
    per = max(1, last.trials - first.trials)
    rows = []
    for name, unit in (("objects", "MB"), ("files", "open files"), ("memory", "MB")):
        a, b = getattr(first, name), getattr(last, name)
        note = f"{a:.1f} {unit} after {first.trials} trials, {b:.1f} after {last.trials}"
        rows.append(Row(f"{name}: after the last over after the first trials", b / max(a, 1e-9) if a
                        else 1.0 + b, None, "lower", note))  # fmt: skip
    note = f"{driver:.1f} CPU s of this process, Tune and imports included, for {trials} trials"
    rows.append(Row("driver: CPU seconds of 10 trials", 10 * driver / trials, 1.0, "lower", note))
    disk = (last.disk - first.disk) / per
    note = f"{disk:.3f} MB a trial, its weights, metrics and Tune's notes"
    rows.append(Row("disk: MB of the store a trial", disk, None, "lower", note))
    return rows


@dataclass(frozen=True)
class Sample:
    """Memory at one moment."""

    trials: int  # finished
    objects: float  # MB in the object store
    files: float  # open, of this process and all below it
    memory: float  # MB resident, of the same
    disk: float  # MB of the store


class Watch(threading.Thread):
    """Looks every few seconds."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.samples, self._done = root, [], threading.Event()
        self.seconds = 0.0  # CPU time of looking
        self.start()

    def run(self) -> None:
        while not self._done.wait(2.0):
            self.samples.append(self.look())
        self.seconds = time.thread_time()

    def stop(self) -> None:
        """Look once more, and no more."""
        self._done.set()
        self.join()
        self.samples.append(self.look())

    def look(self) -> Sample:
        """One sample; what ends while it is looked at counts nothing."""
        files = resident = 0
        for process in processes():
            with contextlib.suppress(PSUTIL.Error):
                files += process.num_fds()
                resident += process.memory_info().rss
        size = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    size += Path(folder, name).stat().st_size
        done = len([*(self.root / "students").glob("*")])
        return Sample(done, _objects(), float(files), resident / 1e6, size / 1e6)


def processes() -> list[Any]:
    """This process and all below it."""
    here = PSUTIL.Process()
    return [here, *here.children(recursive=True)]


class Meter(threading.Thread):
    """CPU seconds of this process and all below it, those that are gone included.

    Whatever a process used within `PERIOD` seconds of its end is missed.
    """

    PERIOD = 0.25

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._used: dict[Any, float] = {}  # by process, which is its id and start time
        self.start()

    def run(self) -> None:
        while True:
            self.seconds()
            time.sleep(self.PERIOD)

    def seconds(self) -> float:
        """CPU seconds so far."""
        for process in processes():
            with contextlib.suppress(PSUTIL.Error):  # it has just ended
                times = process.cpu_times()
                self._used[process] = times.user + times.system
        return sum(self._used.values())


def _objects() -> float:
    """MB in Ray's object store."""
    words = memory_summary(stats_only=True).split()
    at = words.index("Plasma") if "Plasma" in words else -1
    return float(words[at + 3]) if at >= 0 else 0.0


def _wake() -> None:
    """Run a task, so that Ray has done what it does once."""
    ray.get(ray.remote(time_of_day).remote())


def time_of_day() -> float:
    """Nearly nothing."""
    return time.time()


def _on(experiment: Experiment, scale: Scale) -> Experiment:
    return Experiment(experiment.name, experiment.runs, scale, experiment.where)


def _without_teacher(experiment: Experiment) -> Experiment:
    """Copy of an experiment whose students have no teacher, and no comparison with one."""
    changes = {"teacher": None}
    runs = tuple(run.model_copy(update=changes) for run in experiment.students())
    return Experiment(experiment.name, runs, experiment.scale, experiment.where)


if __name__ == "__main__":
    started = time.monotonic()
    main(standalone_mode=False)
    click.echo(f"measured in {time.monotonic() - started:.0f} s")
