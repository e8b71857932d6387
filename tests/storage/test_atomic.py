"""Disks that are full and storage that goes away, while something is trained or cached."""

import os
import subprocess
from pathlib import Path

import pytest

from raykd.core.errors import NoRoom, Unreachable
from raykd.storage.store import Store
from raykd.training.checkpointing import Checkpoints
from raykd.training.runs import local_host, train
from tests.small import prepare, student_run, teacher_run, trained
from tests.training.test_loop import twin


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("ready"))
    prepare(store, student_run(store))
    return store


def on(folder: Path, ready: Store, tmp_path: Path) -> Store:
    """A store whose students lie on another disk."""
    store = twin(ready, tmp_path / "twin")
    (folder / "students").mkdir()
    (store.root / "students").symlink_to(folder / "students")
    return store


@pytest.mark.slow
def test_a_disk_that_fills_stops_a_training_with_a_sentence_and_loses_nothing(
    ready, tmp_path, small_disk
):
    store, run = on(small_disk, ready, tmp_path), student_run(ready)
    ballast = small_disk / "ballast"
    host = local_host(store, run)
    report = host.report

    def filling(metrics, state, *, last):
        if metrics["epoch"] == 1:
            ballast.write_bytes(bytes(_free(small_disk) - 4096))
        report(metrics, state, last=last)

    host.report = filling
    with pytest.raises(
        NoRoom, match=r"checkpoint\.pt: the disk is full; what was finished is kept"
    ):
        train(store, run, host)
    state = Checkpoints(store.path(run)).restore()
    assert state is not None and state["epoch"] == 1
    ballast.unlink()
    assert trained(store, run) == trained(twin(ready, tmp_path / "whole"), run)


@pytest.mark.slow
def test_storage_that_vanishes_is_not_made_anew_below_its_mount(ready, tmp_path, small_disk):
    store, run = on(small_disk, ready, tmp_path), student_run(ready)
    host = local_host(store, run)
    report = host.report

    def vanishing(metrics, state, *, last):
        if metrics["epoch"] == 1:
            subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
        report(metrics, state, last=last)

    host.report = vanishing
    with pytest.raises(Unreachable, match="was there and is gone; what was finished lies on the"):
        train(store, run, host)
    assert [*small_disk.iterdir()] == []
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)


@pytest.mark.slow
def test_a_teacher_saves_no_weights_where_its_storage_was(tmp_path, small_disk):
    store = Store(small_disk)
    store.ensure_root()
    teacher = teacher_run(store)
    host = local_host(store, teacher)
    report = host.report

    def vanishing(metrics, state, *, last):
        report(metrics, state, last=last)
        subprocess.run(["umount", "--lazy", str(small_disk)], check=True)

    host.report = vanishing
    with pytest.raises(Unreachable, match="was there and is gone"):
        train(store, teacher, host)
    assert [*small_disk.iterdir()] == []
    with pytest.raises(Unreachable, match="was there and is gone"):
        store.ensure_root()
    with pytest.raises(Unreachable, match="the driver's store is not there on"):
        Store(small_disk).ensure_root(made=True)  # as a worker does that is started
    assert [*small_disk.iterdir()] == []
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(ready, tmp_path):
    store = Store(tmp_path / "jumping")
    run = student_run(store, views=2)
    prepare(store, run)
    whole = trained(store, run)
    store.discard(run)
    host = local_host(store, run)
    report = host.report

    def stopping(metrics, state, *, last):
        report(metrics, state, last=last)
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    host.report = stopping
    with pytest.raises(KeyboardInterrupt):
        train(store, run, host)
    for number, path in enumerate(sorted(store.root.rglob("*"))):
        moment = (0, 4e9)[number % 2]  # 1970, and 2096
        os.utime(path, (moment, moment))
    prepare(store, run)
    assert trained(store, run) == whole
