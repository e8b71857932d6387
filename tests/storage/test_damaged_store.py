"""Stores that can only be read, that others write into, and whose checkpoints were altered."""

import pytest
import torch
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.core.errors import CacheCorrupt
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.runs import train
from tests.small import CPU, prepare, student_run, train_logits


class Stop(Exception):
    """A training's process has gone away."""


class StoppingHost(LocalHost):
    """This process, which dies after an epoch, once its checkpoint is written."""

    def report(self, metrics, state, *, last):
        super().report(metrics, state, last=last)
        raise Stop


TEXT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  method: kd
  optim: {epochs: 1, batch: 32}
"""


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def finished(tmp_path):
    """An experiment's file and its store, where it was carried out."""
    file, store = tmp_path / "small.yaml", tmp_path / "store"
    file.write_text(TEXT)
    done = call("run", file, "--store", store)
    assert done.exit_code == 0, done.output
    return file, store


@pytest.mark.slow
def test_a_store_in_which_no_page_can_be_written_has_its_tables(finished):
    file, store = finished
    for path in (store / "reports").iterdir():
        path.unlink()
    (store / "reports").rmdir()
    (store / "reports").touch()  # no folder can be made there
    for command in ("run", "report"):
        done = call(command, file, "--store", store)
        assert done.exit_code == 0, done.output
        assert "no page is written: " in done.stderr
        assert "teacher" in done.stdout and "kd" in done.stdout


@pytest.mark.slow
def test_a_cache_that_is_being_built_is_said_to_be(finished):
    file, place = finished
    store = Store(place)
    (run,) = resolve(load(file), store).students()
    cache = train_logits(run)
    (store.path(cache) / "manifest.json").unlink()
    with locks.held(store, cache, "maker"):
        done = call("verify", file, "--store", place)
        assert done.exit_code == 0, done.output
        assert "being built by" in done.stdout
    done = call("verify", file, "--store", place)
    assert done.exit_code == 5, done.output
    assert "there is no manifest; `raykd precompute` makes it" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_that_was_altered_is_not_believed(tmp_path):
    store = Store(tmp_path)
    run, other = student_run(store), student_run(store, seed=1)
    prepare(store, run)
    for each in (run, other):
        with pytest.raises(Stop):
            train(store, each, StoppingHost(Checkpoints(store.path(each)), CPU))
    path = store.path(run) / "checkpoint.pt"
    data = path.read_bytes()
    assert Checkpoints(store.path(run)).restore() is not None
    for part in range(10):
        altered = bytearray(data)
        altered[part * len(data) // 10 + 7] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CacheCorrupt, match=r"checkpoint\.pt: "):
            Checkpoints(store.path(run)).restore()
    path.write_bytes((store.path(other) / "checkpoint.pt").read_bytes())
    with pytest.raises(CacheCorrupt, match=r"checkpoint\.pt: "):
        Checkpoints(store.path(run)).restore()


@pytest.mark.slow
def test_a_run_never_goes_on_from_an_altered_checkpoint(tmp_path):
    file, place = tmp_path / "small.yaml", tmp_path / "store"
    file.write_text(
        TEXT.replace("optim: {epochs: 1, batch: 32}\n", "optim: {epochs: 2, batch: 32}\n")
    )
    store = Store(place)
    (run,) = resolve(load(file), store).students()
    prepare(store, run)
    checkpoints = Checkpoints(store.path(run))
    with pytest.raises(Stop):
        train(store, run, StoppingHost(checkpoints, CPU))
    path = store.path(run) / "checkpoint.pt"
    data = path.read_bytes()
    path.write_bytes(data[:9000] + bytes([data[9000] ^ 16]) + data[9001:])
    done = call("run", file, "--store", place)
    assert done.exit_code == 5, done.output
    assert f"{path}: the checkpoint was altered" in done.stderr
    assert not store.has(run)
    path.unlink()
    assert call("run", file, "--store", place).exit_code == 0
    assert store.has(run)


def test_a_bit_flipped_in_a_checkpoints_seal_changes_no_number(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep({"epoch": 1, "learner": {"w": torch.arange(5.0)}})
    path = tmp_path / "checkpoint.pt"
    data = path.read_bytes()
    for place in range(len(data) - 76, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            state = checkpoints.restore()
        except CacheCorrupt:
            continue
        assert state is not None and torch.equal(state["learner"]["w"], torch.arange(5.0))
