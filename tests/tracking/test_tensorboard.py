"""TensorBoard's events of trainings, as TensorBoard itself reads them."""

import pytest

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import ConfigError
from raykd.planning.preflight import preflight
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers, read_metrics
from raykd.tracking.tensorboard import events_folder
from raykd.training.runs import local_host, train
from tests.small import student_run
from tests.tracking.events import scalars
from tests.tracking.interrupted import StopAt
from tests.training.test_loop import Stop, twin

SCALE = Scale(track=("tensorboard",), checkpoint_seconds=0)


@pytest.mark.slow
def test_a_resumed_training_has_each_epoch_once(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    with pytest.raises(Stop):
        train(store, run, local_host(store, run, SCALE, [StopAt(1)]))
    folder = events_folder(store, run)
    assert folder.parent == tmp_path / "tensorboard" / "students"
    assert folder.name.startswith("kd-resnet8-seed0-")
    assert [epoch for epoch, _ in scalars(folder)["loss"]] == [0, 1]
    train(store, run, local_host(store, run, SCALE))
    history = read_metrics(store.path(run))
    assert len(history) == run.optim.epochs == 3
    expected = {}
    for metrics in history:
        for name, value in numbers(metrics).items():
            if name != "epoch":
                expected.setdefault(name, []).append((metrics["epoch"], pytest.approx(value)))
    assert scalars(folder) == expected


def test_tracking_that_begins_late_has_the_epochs_before(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    with pytest.raises(Stop):
        train(store, run, local_host(store, run, Scale(checkpoint_seconds=0), [StopAt(2)]))
    assert not events_folder(store, run).exists()
    train(store, run, local_host(store, run, SCALE))
    assert [epoch for epoch, _ in scalars(events_folder(store, run))["loss"]] == [0, 1, 2]


def test_an_unknown_tracker_is_refused_before_anything_is_computed(tmp_path):
    store = Store(tmp_path)
    experiment = Experiment("small", (student_run(store),), Scale(track=("tensorbord",)))
    with pytest.raises(ConfigError, match=r"scale\.track: no tracker.*did you mean 'tensorboard'"):
        preflight(experiment, store)


def test_a_tracker_that_fails_does_not_stop_the_training(teacher_store, tmp_path, caplog):
    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    (tmp_path / "tensorboard").touch()  # no folder can be made
    train(store, run, local_host(store, run, SCALE))
    assert store.has(run) and "tensorboard stops recording" in caplog.text
