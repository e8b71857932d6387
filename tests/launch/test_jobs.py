"""Ray jobs as the README has them, on a head that asks for a token."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from raykd.storage.store import MARKER
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import CHECKPOINT
from tests.launch.ray_head import BIN, ROOT, Head
from tests.launch.ray_marks import RAY

pytestmark = [*RAY, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on loopback with four logical CPUs, and a token in its home folder."""
    one = Head()
    yield one
    one.end()


def wait(due: Callable[[], bool], head: Head, job: str) -> None:
    """Wait while a job runs until something is so."""
    deadline, looked = time.monotonic() + 800, time.monotonic()
    while not due():
        assert time.monotonic() < deadline, head.ray("job", "logs", job)
        if time.monotonic() - looked > 10:
            looked = time.monotonic()
            assert "running" in head.ray("job", "status", job), head.ray("job", "logs", job)
        time.sleep(0.1)


def stamps(store: Path) -> dict[Path, int]:
    """Time at which each file of each finished artefact was written, in nanoseconds."""
    folders = [marker.parent for marker in store.glob(f"*s/*/{MARKER}")]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}


def stop(head: Head, job: str, script: str) -> None:
    """Stop a job, and see that it ended in order and that nothing of it is left."""
    assert head.processes(script)
    assert f"Job '{job}' was stopped" in head.ray("job", "stop", job)
    assert not head.processes(script)
    assert "stopped; what was finished is kept" in head.ray("job", "logs", job)


def test_a_job_without_the_cluster_s_token_is_told_what_is_missing(head, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    words = ("job", "submit", "--", "true")
    other = head.ray(*words, code=1, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert "Invalid authentication token" in other
    without = head.ray(*words, code=1, RAY_AUTH_MODE="disabled")
    assert "Missing authentication token" in without
    assert "RAY_AUTH_MODE is currently 'disabled'" in without
    nowhere = head.ray(*words, code=1, HOME=str(tmp_path))
    assert "couldn't find an authentication token" in nowhere
    assert "~/.ray/auth_token" in nowhere


def test_raykd_without_the_cluster_s_token_says_where_to_put_it(head, tmp_path):
    address = (head.folder / "ray_current_cluster").read_text()
    variables = {"HOME": str(tmp_path), "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    words = [BIN / "raykd", "run", ROOT / "experiments/quickstart.yaml", "--store", tmp_path]
    environment = {**head.environment, **variables}
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert f"the Ray cluster at {address} wants a token, and none was found here" in done.stderr
    assert "~/.ray/auth_token" in done.stderr


def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(head, tmp_path):
    script = "experiments/imagenet_skd.py"
    words = ("python", script, "--tiny", "--store", str(tmp_path))
    words += ("--set", "scale.checkpoint_seconds=0", "--set", "run.optim.epochs=6")
    head.submit("skd", *words)
    log = head.follow("skd", "cache of torchvision/resnet34's train logits, epoch 2: row 512/512")
    assert any("joining the Ray cluster" in line for line in log)
    wait(lambda: any(tmp_path.glob(f"students/*/{CHECKPOINT}")), head, "skd")
    stop(head, "skd", script)
    [student] = (tmp_path / "students").iterdir()
    state = torch.load(student / CHECKPOINT, weights_only=True)
    before, done = read_metrics(student), stamps(tmp_path)
    assert len(before) < 6
    assert {path.parts[-3] for path in done} == {"teachers", "caches"}

    said = head.submit("skd-again", *words, wait=True)
    assert "Job 'skd-again' succeeded" in said
    assert "to train: 1 student; in the store: 1 teacher" in said
    assert "page: " in said
    after = stamps(tmp_path)
    assert {path: after[path] for path in done} == done  # neither the teacher nor a shard again
    history = read_metrics(student)
    assert [line["epoch"] for line in history] == [*range(6)]
    # Also how many seconds each epoch took: they were not trained again.
    assert history[: state["epoch"]] == before[: state["epoch"]]


def test_the_upload_is_the_code_and_nothing_else(head):
    if not head.uploaded():
        head.submit("upload", "true", wait=True)
    # A job that imported what was unpacked has left bytecode there.
    files = [path for path in head.uploaded() if path.parent.name != "__pycache__"]
    names = {path.name for path in files}
    assert {"imagenet_skd.py", "rco_sweep.py", "store.py"} <= names
    assert not [path for path in files if {"tests", ".git", ".venv"} & {*path.parts}]
    assert not [path for path in files if path.suffix == ".png"]
    assert sum(path.stat().st_size for path in files) < 5e6
