"""Every script of experiments/ has a run of seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.quick import EXPERIMENTS, RUNS

SCRIPTS = {
    ".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts)
    for path in EXPERIMENTS.rglob("*.py")
    if "__main__" in path.read_text()
}


def test_every_script_has_a_quick_run_and_the_option_that_it_takes():
    assert {*RUNS} == SCRIPTS
    for name, words in RUNS.items():
        assert (
            f'"{words[0]}", is_flag=True'
            in (EXPERIMENTS / f"{name.replace('.', '/')}.py").read_text()
        ), name


def test_ci_runs_them():
    root = EXPERIMENTS.parent
    for target in ("scripts", "soak"):
        assert "run " in (line := _line(root / ".ci" / "run", target)), line
    assert "tests.experiments.quick" in (root / "Makefile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["benchmarks.cache", "studies.cifar10_methods"])
def test_a_quick_run_ends_well(name):
    command = [sys.executable, "-m", "tests.experiments.quick", name]
    done = subprocess.run(
        command, cwd=EXPERIMENTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{name}: done" in done.stdout


def _line(path: Path, word: str) -> str:
    return next(line for line in path.read_text().splitlines() if line.endswith(f" {word}"))
