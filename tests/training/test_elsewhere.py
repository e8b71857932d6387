"""Experiments on a server that speaks S3: machines that share nothing but its URL."""

import shutil

import pytest
import torch

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import CacheCorrupt
from raykd.data.dataset import open_images
from raykd.launch.executor import execute
from raykd.methods.crd import CRD
from raykd.methods.sakd import SAKD
from raykd.recipes import Optim
from raykd.report.catalogue import catalogue, verify_caches
from raykd.storage.filesystem import Remote
from raykd.storage.store import Store
from raykd.teachers.anchor_route import Route
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import METRICS, read_metrics
from raykd.training.cache_builder import CacheBuild
from raykd.training.checkpointing import CHECKPOINT, Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.inputs import open_cache
from raykd.training.runs import local_host, train
from tests.small import (
    CPU,
    build_here,
    digits,
    prepare,
    student_run,
    teacher_run,
    train_logits,
    trained,
)

pytestmark = pytest.mark.slow

QUIET = Terminal(quiet=True)
NOTHING = {"teachers": 0, "caches": 0, "preludes": 0, "students": 0}


@pytest.fixture
def machine(bucket, tmp_path, monkeypatch):
    """The store as a machine of some name sees it that was never there before, or was."""

    def store(name: str) -> Store:
        monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / name))
        return Store(bucket)

    return store


@pytest.fixture
def calls(monkeypatch):
    """Values that another process computed, by name."""
    names: list[str] = []
    fetch = Remote.fetch
    monkeypatch.setattr(
        Remote,
        "fetch",
        lambda self, name, path, checksum="": (
            names.append(name),
            fetch(self, name, path, checksum),
        ),
    )
    return names


class Stop(Exception):
    """The machine that trains has gone away."""


class StoppingHost(LocalHost):
    """This process, which dies after some epochs."""

    def __init__(self, store, run, epochs):
        super().__init__(Checkpoints(store.path(run), store=store), CPU)
        self.left = epochs

    def report(self, metrics, state, *, last):
        super().report(metrics, state, last=last)
        self.left -= 1
        if self.left == 0:
            raise Stop


def weights(store, run):
    return store.pull(store.path(run) / "weights.safetensors").read_bytes()


def test_an_experiment_is_found_whole_from_another_machine(machine, tmp_path, calls):
    here = machine("here")
    runs = tuple(student_run(here, name) for name in ("label_only", "kd", "ft"))
    experiment = Experiment("small", runs, Scale(checkpoint_seconds=0))
    outcome = execute(experiment, here, QUIET)
    assert outcome.made == {"teachers": 1, "caches": 2, "preludes": 1, "students": 3}
    calls.clear()
    there = machine("there")
    again = execute(experiment, there, QUIET)
    assert again.made == NOTHING
    assert again.reused == outcome.made
    assert not [name for name in calls if "view-" in name or "weights" in name]
    assert len(catalogue("students", there)) == 3
    rows, errors = verify_caches(there, None, 64)
    assert (len(rows), errors) == (2, [])
    local = Store(tmp_path / "local")
    assert [student_run(local, name) for name in ("label_only", "kd", "ft")] == [*runs]
    prepare(local, *runs)
    for run in runs:
        assert weights(there, run) == trained(local, run)
    names = [entry.name for entry in Remote(here.url).entries()]
    assert not [name for name in names if CHECKPOINT in name or ".tmp" in name or ".new" in name]


def test_a_run_goes_on_on_another_machine_to_equal_weights(machine, tmp_path):
    here = machine("here")
    # A policy, a memory and their own group of the optimiser: the most that is kept.
    method = SAKD(base=CRD(negatives=64), homogeneous=False)
    run = student_run(here, method, optim=Optim(epochs=4, batch=32))
    prepare(here, run)
    with pytest.raises(Stop):
        train(here, run, StoppingHost(here, run, 2))
    there = machine("there")
    assert not there.has(run)
    assert len(read_metrics(there.path(run), there)) == 2
    assert len(read_metrics(there.path(run))) == 0
    with pytest.raises(Stop):
        train(there, run, StoppingHost(there, run, 1))
    back = machine("here")  # which has the checkpoint of two epochs
    found = weights_after(back, run)
    local = Store(tmp_path / "local")
    digits(local, limit=96)
    prepare(local, run)
    assert found == trained(local, run)
    assert [line["epoch"] for line in read_metrics(back.path(run))] == [0, 1, 2, 3]
    assert Remote(back.url).entry(f"students/{back.path(run).name}/{CHECKPOINT}") is None
    assert machine("third").has(run)


def weights_after(store, run):
    """The weights of a run that goes on where it was."""
    train(store, run, local_host(store, run))
    return weights(store, run)


def test_a_teacher_s_route_is_gathered_from_the_machines_that_trained_it(machine, tmp_path):
    here = machine("here")
    run = teacher_run(here, optim=Optim(epochs=4, batch=32), save_every=1)
    with pytest.raises(Stop):
        train(here, run, StoppingHost(here, run, 2))
    there = machine("there")
    train(there, run, local_host(there, run))
    local = Store(tmp_path / "local")
    digits(local, limit=320)
    train(local, run, local_host(local, run))
    third = machine("third")
    assert third.has(run)
    for anchor in run.anchors():
        name = f"weights-{anchor:04d}.safetensors"
        path = third.pull(third.path(run) / name)
        assert path.read_bytes() == (local.path(run) / name).read_bytes()


def test_a_damaged_shard_is_named_and_built_again(machine):
    here = machine("here")
    run = student_run(here)
    prepare(here, run)
    logits, remote = train_logits(run), Remote(here.url)
    shards = [
        e.name for e in remote.entries(f"caches/{here.path(logits).name}") if "view-" in e.name
    ]
    assert len(shards) == 3
    path = here.root / shards[1]
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))
    remote.push(path, shards[1])
    there = machine("there")
    with pytest.raises(CacheCorrupt, match=rf"{there.shown}/{shards[1]}: .* checksum"):
        open_cache(there, logits, [0, 1, 2], CPU).check(1)
    again = machine("there")
    build = CacheBuild(again, logits, [0, 1, 2])
    assert [part.view for part in build.missing] == [1]
    build_here(build, CPU)
    third = machine("third")
    for view in range(3):
        open_cache(third, logits, [0, 1, 2], CPU).check(view)
    assert (third.root / shards[1]).read_bytes() == data


def test_a_student_with_many_anchors_reads_ahead_and_learns_the_same(machine, tmp_path):
    found = []
    for store in (machine("here"), Store(tmp_path / "local")):
        teacher = teacher_run(store, optim=Optim(epochs=4, batch=32))
        route = Route(anchors=(1, 2, 4), starts=(0, 1, 3))
        optim = Optim(epochs=5, batch=32)
        run = student_run(store, "simkd", teacher=teacher, route=route, optim=optim, views=2)
        prepare(store, run)
        found.append(trained(store, run))
    assert found[0] == found[1]


def test_images_come_once_and_are_checked(machine, calls):
    here = machine("here")
    data = digits(here, limit=96)
    there = machine("there")
    assert digits(there, limit=96) == data
    for _ in range(2):
        open_images(there, data)
    assert len([name for name in calls if name.endswith("train.arrow")]) == 1
    shutil.rmtree(there.root)
    again = machine("there")
    assert torch.equal(open_images(again, data)[0].pixels, open_images(here, data)[0].pixels)


def test_metrics_of_a_run_elsewhere_are_read_and_not_written(machine):
    here = machine("here")
    run = student_run(here, "label_only", teacher=None)
    with pytest.raises(Stop):
        train(here, run, StoppingHost(here, run, 1))
    there = machine("there")
    assert [line["epoch"] for line in read_metrics(there.path(run), there)] == [0]
    assert not (there.path(run) / METRICS).exists()
