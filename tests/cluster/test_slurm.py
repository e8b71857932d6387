"""The script for Slurm, with real Ray nodes, where two commands of Slurm are stood in for.

`srun` runs its tasks on this machine, and `scontrol` writes down what it was asked for.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raykd.storage.store import MARKER, Store
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import CHECKPOINT
from tests.launch.ray_head import BIN, FOREIGN, ROOT, end, processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
trap 'kill $(jobs -p); wait' TERM
for ((task = 0; task < SLURM_NNODES; task++)); do SLURM_PROCID=$task "$@" & done
wait
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> asked
"""
EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2, batch: 32}}
  method: kd
  views: 2
  optim: {epochs: 60, batch: 32}
scale: {workers: 1, checkpoint_seconds: 0}
"""
JOB = 4242


@pytest.fixture
def environment(tmp_path):
    """Slurm's variables for a script on two nodes, with a home folder to end its processes by."""
    home, tools = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    yield {name: value for name, value in os.environ.items() if name not in FOREIGN} | {
        "HOME": str(home),
        "PATH": f"{tools}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(JOB),
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
    }
    end(home)


def test_a_run_that_slurm_stops_is_put_back_into_the_queue_and_goes_on(environment, tmp_path):
    file, store = tmp_path / "small.yaml", tmp_path / "store"
    file.write_text(EXPERIMENT)
    words = ["bash", str(ROOT / "cluster/slurm.sh"), "raykd", "run", file.name]
    words += ["--store", str(store)]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        while not [*store.glob(f"students/*/{CHECKPOINT}")]:
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        status = first.wait()
    said = (tmp_path / "log").read_text()
    assert status == 143, said
    assert "stopped; what was finished is kept, and the same command goes on" in said
    assert "slurm.sh: 2 of 2 nodes" in said
    assert "slurm.sh: stopped (status 143), and back into the queue" in said
    assert (tmp_path / "asked").read_text() == f"requeue {JOB}\n"
    [student] = (store / "students").iterdir()
    before = read_metrics(student)
    assert 0 < len(before) < 60 and not [*Store(store).finished("students")]
    # The token, the sockets and Ray's processes are gone.
    assert not [*tmp_path.glob(".ray-token*")] and not Path(f"/tmp/raykd-{JOB}").exists()
    assert not processes(tmp_path / "home", "gcs_server")

    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "asked").read_text() == f"requeue {JOB}\n"  # not once more
    history = read_metrics(student)
    assert len(history) == 60 and (student / MARKER).is_file()
    assert history[0] == before[0]  # with its seconds: it was not trained again


def test_a_job_whose_head_does_not_start_ends(environment, tmp_path):
    broken = tmp_path / "bin" / "ray"
    broken.write_text("#!/usr/bin/env bash\necho no such port >&2\nexit 1\n")
    broken.chmod(0o755)
    words = ["bash", str(ROOT / "cluster/slurm.sh"), "raykd", "show", "methods"]
    ended = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment | {"RAYKD_PATIENCE": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "no such port" in ended.stderr and "Ray's head did not start" in ended.stderr
    assert not [*tmp_path.glob(".ray-token*")]
