"""Start-up, and a finished experiment once more: what a user waits for before and around the work.

    python -m experiments.benchmarks.startup [--students N] [--pairs N]

CPU seconds of whole commands in processes of their own, over those of importing torch alone, in
turns. What is remembered in the user's cache is there from the warm-up round on. A grid of finished
students is made by training one and copying it under the recipes of the others.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from experiments.benchmarks.measure import Row, compared, interleaved, show
from raykd.api.experiment import Experiment, load
from raykd.api.work import prepared, run
from raykd.storage.store import Store, read_json
from raykd.training.checkpointing import RESULT

_TORCH = "import torch"
_RAYKD = "from raykd.cli import main; main()"
_FILE = """\
run:
  model: resnet8
  data: {name: digits, limit: 64}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 1, batch: 32}
grid:
  run.seed: [%s]
scale: {workers: 0}
"""


@click.command()
@click.option("--students", default=1000, show_default=True, help="Students of the finished grid.")
@click.option("--pairs", default=5, show_default=True, help="Rounds of each measurement.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--quick", is_flag=True, help="Few students, one round: the same code in seconds.")
def main(students: int, pairs: int, target: Path | None, quick: bool) -> None:
    """Print the table."""
    students, pairs = (20, 1) if quick else (students, pairs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, store = folder / "grid.yaml", folder / "store"
        file.write_text(_FILE % ", ".join(map(str, range(students))))
        _finish(load(file), store)
        wrong = folder / "wrong.yaml"
        wrong.write_text(file.read_text().replace("optim: {epochs", "optim: {epcohs"))
        at, nowhere = f"--store={store}", str(folder / "nowhere.yaml")
        commands = {
            "a file that is not there": (0.2, ["run", nowhere, at]),
            "a key that is not there": (0.2, ["run", str(wrong), at]),
            "raykd show methods": (0.4, ["show", "methods", at]),
            "raykd show models": (0.4, ["show", "models", at]),
            f"raykd run, {students} finished students": (None, ["run", str(file), at]),
            f"raykd report, {students} finished students": (None, ["report", str(file), at]),
        }
        sides = {"import torch": lambda: _seconds(["-c", _TORCH])}
        for what, (_, words) in commands.items():
            sides[what] = lambda words=words: _seconds(["-c", _RAYKD, *words])
        measured = interleaved(sides, pairs)
    base = "import torch", measured["import torch"]
    rows: list[Row] = [
        compared(what, ("it", measured[what]), base, goal, "command", "lower")
        for what, (goal, _) in commands.items()
    ]
    show("start-up, CPU time over that of importing torch", rows, target)


def _seconds(words: Sequence[str]) -> float:
    """CPU seconds of a Python process and of those that it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _finish(experiment: Experiment, place: Path) -> None:
    """Train the first student of a grid, and copy it for the others."""
    store = Store(place)
    resolved, _, _ = prepared(experiment, store, quiet=True)
    first, *others = resolved.students()
    run(first, store, workers=0, quiet=True)
    done = store.path(first)
    result = read_json(done / RESULT)
    for student in others:
        folder = store.path(student)
        shutil.copytree(done, folder)
        store.write_json(folder / RESULT, result)
        store.finish(student)


if __name__ == "__main__":
    main()
