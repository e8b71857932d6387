"""Start-up, and a finished experiment once more: what a user waits for before and around the work.

    python -m experiments.benchmarks.startup [--students N] [--pairs N]

CPU seconds of whole commands in processes of their own, over those of importing torch alone, in
turns. What is remembered in the user's cache is there from the warm-up round on. A grid of finished
students is made by training one and linking its files under the recipes of the others.
"""

import tempfile
from pathlib import Path

import click

from experiments.benchmarks.measure import (
    Row,
    compared,
    finish_grid,
    grid_file,
    interleaved,
    show,
    spent,
)
from raykd.api.experiment import load

_TORCH = "import torch"
_RAYKD = "from raykd.cli import main; main()"


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
        file, store = grid_file(folder / "grid.yaml", students), folder / "store"
        finish_grid(load(file), store)
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
        sides = {"import torch": lambda: spent(["-c", _TORCH])[0]}
        for what, (_, words) in commands.items():
            sides[what] = lambda words=words: spent(["-c", _RAYKD, *words])[0]
        measured = interleaved(sides, pairs)
    base = "import torch", measured["import torch"]
    rows: list[Row] = [
        compared(what, ("it", measured[what]), base, goal, "command", "lower")
        for what, (goal, _) in commands.items()
    ]
    show("start-up, CPU time over that of importing torch", rows, target)


if __name__ == "__main__":
    main()
