"""Two drivers that do the same in one store, at the same time."""

import subprocess
import sys

import pytest

from raykd.storage.store import Store, read_json
from tests.launch.faults import experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND = [sys.executable, "-c", "from raykd.cli import main; main()", "run"]


def test_what_one_makes_the_other_waits_for(tmp_path):
    file, store = tmp_path / "two.yaml", tmp_path / "store"
    file.write_text(experiment(2, 20, "grid: {run.seed: [0, 1, 2]}"))
    drivers = [
        subprocess.Popen(
            [*COMMAND, str(file), "--store", str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    texts = [driver.communicate()[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], "\n".join(texts)
    assert "is being made by process" in "".join(texts)
    for folder in Store(store).root.glob("students/*"):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 20
        assert read_json(folder / "result.json")["workers"] == 1
    assert len([*store.glob("students/*")]) == 3
    assert [*store.glob("locks/*")] == []
