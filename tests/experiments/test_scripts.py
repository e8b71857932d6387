"""Every script of experiments/ has a run of seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
from quick import RUNS  # noqa: E402

SCRIPTS = {path.stem for path in EXPERIMENTS.glob("*.py") if "__main__" in path.read_text()}


def test_every_script_has_a_quick_run_and_the_option_that_it_takes():
    assert {*RUNS} == SCRIPTS - {"quick", "soak"}, "soak is a target of its own"
    for name, words in RUNS.items():
        assert f'"{words[0]}", is_flag=True' in (EXPERIMENTS / f"{name}.py").read_text(), name


def test_ci_runs_them():
    root = EXPERIMENTS.parent
    for target in ("scripts", "soak"):
        assert "run " in (line := _line(root / ".ci" / "run", target)), line
    assert "experiments/quick.py" in (root / "Makefile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench_cache", "cifar10_methods"])
def test_a_quick_run_ends_well(name):
    command = [sys.executable, str(EXPERIMENTS / "quick.py"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{name}: done" in done.stdout


def _line(path: Path, word: str) -> str:
    return next(line for line in path.read_text().splitlines() if line.endswith(f" {word}"))
