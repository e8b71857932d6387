"""Trackers of trainings on a Ray cluster: a worker is killed, and trials of a sweep are a group."""

import importlib.util

import pytest

from raykd.config.experiment import parse
from raykd.core.record import fingerprint
from raykd.launch.sweep.driver import sweep
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.tracking.tensorboard import events_folder
from tests.launch.ray_marks import RAY
from tests.launch.test_ray import tracked_with_a_kill
from tests.tracking.events import scalars

pytestmark = [
    *RAY,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's of SQLAlchemy
]
QUIET = Terminal(quiet=True)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def killed(cluster, tmp_path_factory):
    """A store, a student whose group lost a worker, and its (epoch, loss)."""
    found = importlib.util.find_spec("mlflow")
    store = Store(tmp_path_factory.mktemp("killed") / "store")
    return store, *tracked_with_a_kill(store, "tensorboard", *(["mlflow"] if found else []))


def tracked(store):
    """A client of MLflow, and the runs in the store's database by fingerprint."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{store.root}/mlflow.db")
    experiment = client.get_experiment_by_name("raykd")
    runs = client.search_runs([experiment.experiment_id])
    by_fingerprint = {run.data.tags["raykd.fingerprint"]: run for run in runs}
    assert len(by_fingerprint) == len(runs)
    return client, by_fingerprint


def test_events_of_a_group_whose_worker_is_killed_have_each_epoch_once(killed):
    store, run, lines = killed
    assert scalars(events_folder(store, run))["loss"] == [
        (epoch, pytest.approx(loss)) for epoch, loss in lines
    ]
    assert [epoch for epoch, _ in lines] == list(range(20))


def test_a_group_whose_worker_is_killed_is_one_run_with_each_epoch_once(killed):
    store, run, lines = killed
    client, runs = tracked(store)
    found = runs[fingerprint(run)]
    losses = [(row.step, row.value) for row in client.get_metric_history(found.info.run_id, "loss")]
    assert losses == [(epoch, pytest.approx(loss)) for epoch, loss in lines]
    assert found.info.status == "FINISHED" and found.data.tags["raykd.experiment"] == "small"


def test_trials_of_a_sweep_are_one_group(cluster, store):
    pytest.importorskip("mlflow")
    text = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, validation: 0.2, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 64}}
  method: kd
  optim: {epochs: 2, batch: 32}
grid: {run.seed: [0, 1]}
scale: {workers: 1, track: [mlflow]}
"""
    swept = sweep(parse(text, "small"), store, QUIET)
    _, runs = tracked(store)
    trials = {fingerprint(sheet.student): sheet.trial for sheet in swept.sheets}
    assert len(trials) == 2
    for name, found in runs.items():
        # The driver makes the teacher before any trial begins.
        label = (swept.name, trials[name]) if name in trials else ("small", None)
        tags = found.data.tags
        assert (tags["raykd.experiment"], tags.get("raykd.trial")) == label
    assert len(runs) == len(trials) + 1
