"""A training that ends in the middle of an epoch goes on from there, bit for bit."""

import os
import signal
import threading

import pytest

from raykd.config.scale import Scale
from raykd.core.shutdown import Notice, Terminated, noticed, terminable
from raykd.methods import METHODS, Method
from raykd.methods.crd import CRD
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.tasks import Faces
from raykd.teachers.anchor_route import Route
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.runs import local_host, train
from tests.small import CPU, digits, prepare, student_run, teacher_run, trained
from tests.training.test_loop import Stop, called, twin

# Methods that keep something from step to step; the others have nothing that could be lost.
KEEPING = [
    name
    for name, kind in METHODS.items()
    if kind.helpers is not Method.helpers or kind.prelude is not Method.prelude
]
QUEUE = FeatureDistillation(distance="queue", size=50)  # as many as a step and a half have
ADAM = Optim(name="adamw", epochs=3, batch=32, lr=1e-3, schedule="cosine", ema=0.9, clip=1.0)


class LeavingHost(LocalHost):
    """This process, which dies in the middle of an epoch, once a checkpoint is written."""

    def __init__(self, checkpoints, steps):
        super().__init__(checkpoints, CPU)
        self.left = steps

    def between(self, state):
        self.left -= 1
        if self.left == 0:
            self.checkpoints.keep(state())
            raise Stop


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store))
    return store


def interrupted(store, run, stops):
    """The weights of a student that was stopped between steps, each time `stops` calls later."""
    prepare(store, run)
    for steps in stops:
        with pytest.raises(Stop):
            train(store, run, LeavingHost(Checkpoints(store.path(run)), steps))
        assert not store.has(run)
    return trained(store, run)


def losses(store, run):
    """Training metrics of the epochs."""
    lines = read_metrics(store.path(run))
    return [{k: v for k, v in line.items() if k.startswith(("loss", "top1"))} for line in lines]


def test_a_run_that_stops_within_an_epoch_ends_with_equal_weights(teacher_store, tmp_path):
    method = SAKD(base=CRD(negatives=64), homogeneous=False)
    run = student_run(teacher_store, method, optim=ADAM)
    prepare(teacher_store, run)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    # Two steps of the three of each epoch are followed by another one.
    assert interrupted(resumed, run, (1, 1, 1, 2)) == trained(reference, run)
    assert losses(resumed, run) == losses(reference, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KEEPING, "kd", "mlkd", QUEUE], ids=called)
def test_every_method_goes_on_within_an_epoch(teacher_store, tmp_path, name):
    run = student_run(teacher_store, name, optim=Optim(epochs=2, batch=32))
    prepare(teacher_store, run)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    assert interrupted(resumed, run, (1, 2)) == trained(reference, run)
    assert losses(resumed, run) == losses(reference, run)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["adaface", "sphereface"])
def test_moments_and_steps_of_a_margin_go_on_within_an_epoch(teacher_store, tmp_path, head):
    optim = Optim(epochs=2, batch=32, lr=0.01)
    fields = {"task": Faces(head=head, scale=16.0), "teacher": None, "optim": optim}
    run = student_run(teacher_store, "label_only", **fields)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    assert interrupted(resumed, run, (1, 2)) == trained(reference, run)
    assert losses(resumed, run) == losses(reference, run)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", SAKD(base=KD(), homogeneous=False)], ids=called)
def test_dropout_draws_on_where_it_was(tmp_path, method):
    teacher_store = Store(tmp_path / "ready")
    optim, data = Optim(epochs=1, batch=16), digits(teacher_store, limit=48, resize=32)
    network = teacher_run(teacher_store, model="torchvision/resnet18", data=data, optim=optim)
    run = student_run(
        teacher_store,
        method,
        model="torchvision/mobilenet_v2",
        data=data,
        teacher=network,
        optim=optim,
    )
    prepare(teacher_store, run)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    assert interrupted(resumed, run, (1,)) == trained(reference, run)


@pytest.mark.slow
def test_a_stage_that_another_anchor_teaches_goes_on_within_its_first_epoch(
    teacher_store, tmp_path
):
    run = student_run(teacher_store, "skd", route=Route(anchors=(1, 2), starts=(0, 1)))
    prepare(teacher_store, run)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    # The second epoch begins with the third call.
    assert interrupted(resumed, run, (3, 1)) == trained(reference, run)


def test_checkpoints_within_an_epoch_come_when_it_is_time(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "timed")
    run = student_run(teacher_store)
    kept = []

    class Counting(Checkpoints):
        def keep(self, state):
            kept.append((state["epoch"], (state.get("within") or {}).get("steps")))
            super().keep(state)

    checkpoints = Counting(store.path(run), 1e9, store, within=0.0)
    train(store, run, LocalHost(checkpoints, CPU))
    # After both steps of each epoch that are not its last; the end of the last epoch is one, too.
    assert kept == [(e, s) for e in range(3) for s in (1, 2)] + [(3, None)]


class Warned(Notice):
    """A machine that is about to go, from the start."""

    def given(self):
        return True


def test_a_machine_that_is_about_to_go_keeps_a_checkpoint_at_once(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "warned")
    run = student_run(teacher_store)
    checkpoints = Checkpoints(store.path(run), 1e9, store)
    host, seen = LocalHost(checkpoints, CPU, notice=Warned()), []

    class Watching(LocalHost):
        def between(self, state):
            super().between(state)
            seen.append((store.path(run) / "checkpoint.pt").is_file())
            raise Stop

    host.__class__ = Watching
    with pytest.raises(Stop):
        train(store, run, host)
    assert seen == [True]


@pytest.mark.slow
def test_a_process_that_is_told_to_end_does_so_after_a_checkpoint(teacher_store, tmp_path):
    run = student_run(teacher_store, optim=ADAM)
    reference, resumed = (
        twin(teacher_store, tmp_path / "whole"),
        twin(teacher_store, tmp_path / "cut"),
    )
    with pytest.raises(Terminated), noticed() as notice:  # noqa: PT012
        host = local_host(resumed, run, Scale(checkpoint_seconds=1e9), notice=notice)
        os.kill(os.getpid(), signal.SIGTERM)
        train(resumed, run, host)
    state = Checkpoints(resumed.path(run)).restore()
    assert state is not None and (state["epoch"], state["within"]["steps"]) == (0, 1)
    assert trained(resumed, run) == trained(reference, run)


def test_a_region_is_ended_at_once_and_leaves_the_signal_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)
    with pytest.raises(Terminated), noticed():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)
    assert signal.getsignal(signal.SIGTERM) == before
