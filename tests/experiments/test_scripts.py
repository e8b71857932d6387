"""Every script of experiments/ has a run of seconds."""

from pathlib import Path

from tests.experiments.quick import EXPERIMENTS, RUNS

SCRIPTS = {
    ".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts)
    for path in EXPERIMENTS.rglob("*.py")
    if "__main__" in path.read_text()
}


def test_every_script_has_a_quick_run_and_the_option_that_it_takes():
    rehearsed = {"benchmarks.gpu_session"}  # by a test of its own
    assert {*RUNS} == SCRIPTS - rehearsed
    for name, words in RUNS.items():
        assert (
            f'"{words[0]}", is_flag=True'
            in (EXPERIMENTS / f"{name.replace('.', '/')}.py").read_text()
        ), name


def test_ci_runs_them():
    root = EXPERIMENTS.parent
    assert "run " in _line(root / ".ci" / "run", "scripts")
    assert "tests.experiments.quick" in (root / "Makefile").read_text()


def _line(path: Path, word: str) -> str:
    return next(line for line in path.read_text().splitlines() if line.endswith(f" {word}"))
