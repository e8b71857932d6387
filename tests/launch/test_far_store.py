"""Ray's workers in a store that lies on a server: nothing but its URL is shared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.storage.filesystem import Remote
from raykd.storage.store import Store
from tests.launch.ray_marks import RAY
from tests.small import prepare, trained

pytestmark = [*RAY, pytest.mark.timeout(900)]

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2, batch: 32}}
  optim: {epochs: 3, batch: 32}
grid:
  run.method: [label_only, kd, dkd]
scale: {workers: 1, rules: [{match: {run.method.name: dkd}, workers: 2}], local_gb: 0.001}
"""


def test_a_driver_and_its_workers_share_nothing_but_the_url(bucket, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(EXPERIMENT)
    words = [sys.executable, str(Path(__file__).with_name("far_store.py")), str(file), bucket]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*words, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [["made", "1", "2", "0", "3"], ["trials", "3", "3"], ["trials", "3", "3"]]
    drivers, workers = ([*(tmp_path / name).glob("*/students/*")] for name in ("driver", "workers"))
    assert drivers
    assert workers
    local = Store(tmp_path / "local")
    students = resolve(load(file), local).students()
    prepare(local, *students)
    remote = Remote(bucket)
    for run in students[:2]:
        found = remote.read(f"students/{local.path(run).name}/weights.safetensors")
        assert found == trained(local, run)
    names = [entry.name for entry in remote.entries()]
    assert len([n for n in names if n.startswith("students/") and n.endswith("recipe.json")]) == 6
    assert not [name for name in names if "checkpoint.pt" in name]
