"""The session of a machine with a GPU, rehearsed without one."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import gpu, gpu_session

ROOT = Path(gpu_session.__file__).parents[2]
MAINS = {"experiments.benchmarks.gpu": gpu, "experiments.benchmarks.gpu_session": gpu_session}


@pytest.mark.parametrize("rehearse", [True, False])
def test_every_part_is_a_command_that_there_is(tmp_path, rehearse):
    parts = [*gpu_session.parts(rehearse=rehearse, cifar=tmp_path, shared=tmp_path / "speeds")]
    assert sum(part.seconds for part in parts[:-1]) <= 600
    for part in parts:
        how, module, *words = part.words
        if how == "-m" and module in MAINS:
            assert MAINS[module].main.make_context(module, words)
        elif how == "-m":
            assert module == "pytest"
            assert all(Path(word).is_file() for word in words if word.endswith(".py"))


@pytest.mark.slow
def test_a_rehearsal_writes_each_part_as_it_ends(tmp_path):
    output = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "experiments.benchmarks.gpu_session", "--rehearse"]
    command += ["--output", str(output), "--minutes", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = output.read_text()
    assert done.returncode == 0, text
    for part in gpu_session.parts(rehearse=True, cifar=None, shared=tmp_path):
        assert f"### {part.title}\n" in text
