"""Runs of MLflow in a SQLite file, as MLflow itself reads them."""

import importlib.util
import math
import subprocess
import sys

import pytest

from raykd.config.scale import Scale
from raykd.core.record import fingerprint
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers, read_metrics
from raykd.tracking.logger import Labels
from raykd.training import checkpointing
from raykd.training.runs import local_host, train
from tests.small import student_run, teacher_run
from tests.tracking.interrupted import StopAt
from tests.training.test_loop import Stop, twin

SCALE = Scale(track=("mlflow",), checkpoint_seconds=0)
pytestmark = [
    # Imported where it is needed, since that takes a second of each run of pytest.
    pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="no MLflow"),
    # MLflow 3.17 calls what SQLAlchemy 2.1 has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The URI of a database, whose tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def tracking(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def client_of(database):
    import mlflow

    return mlflow.MlflowClient(database)


def runs(database, run):
    client = client_of(database)
    experiment = client.get_experiment_by_name("raykd")
    name = fingerprint(run)
    return client.search_runs([experiment.experiment_id], f"tags.`raykd.fingerprint` = '{name}'")


@pytest.mark.slow
def test_a_resumed_training_is_one_run_with_each_epoch_once(teacher_store, tmp_path, database):
    store, labels = twin(teacher_store, tmp_path), Labels("grid", "trial-3")
    run, client = student_run(store), client_of(database)
    with pytest.raises(Stop):
        train(store, run, local_host(store, run, SCALE, [StopAt(1)], labels=labels))
    [before] = runs(database, run)
    assert before.info.status == "KILLED"
    assert [row.step for row in client.get_metric_history(before.info.run_id, "loss")] == [0, 1]
    train(store, run, local_host(store, run, SCALE, labels=labels))
    [after] = runs(database, run)
    assert after.info.run_id == before.info.run_id and after.info.status == "FINISHED"
    expected = {}
    for metrics in read_metrics(store.path(run)):
        for name, value in numbers(metrics).items():
            expected.setdefault(name, []).append((metrics["epoch"], value))
    curves = {
        name: [(row.step, row.value) for row in client.get_metric_history(after.info.run_id, name)]
        for name in after.data.metrics
    }
    timed = [name for name in expected if "second" in name]
    for name in timed:  # epoch 1 was measured twice
        assert [step for step, _ in curves[name]] == [0, 1, 2]
    for name in expected.keys() - timed:
        assert curves[name] == expected[name]
    result = checkpointing.read_result(store.path(run), checkpointing.Tested)
    assert curves["best_top1"] == [(2, result["best"]["top1"])]
    assert curves["parameters"] == [(2, result["parameters"])]
    assert after.data.params["method.name"] == "kd" and after.data.params["optim.epochs"] == "3"
    assert after.data.params["teacher.model"] == "resnet8"
    tags = after.data.tags
    assert (tags["raykd.experiment"], tags["raykd.trial"]) == ("grid", "trial-3")
    assert tags["hardware"] == result["hardware"] and tags["mlflow.runName"].startswith("kd-res")


@pytest.mark.slow
def test_names_that_mlflow_refuses_are_mapped(teacher_store, tmp_path, database):
    from raykd.tracking.mlflow import MLflow

    store = twin(teacher_store, tmp_path)
    run, log = student_run(store, seed=5), MLflow(store)
    values = {"loss(a)/b": 1.0, "/c//d": 2.0, "..": 3.0, "e" * 300: math.nan, "f\u00e9": 4.0}
    log.begin(run, [])
    log.epoch(run, {"epoch": 0, **values})
    log.end(run, None)
    [found] = runs(database, run)
    names = {"loss_a_/b", "_/c/_/d", "_", "e" * 250, "f_", "epoch"}
    assert found.data.metrics.keys() == names


@pytest.mark.slow
def test_without_an_address_the_database_is_in_the_store(teacher_store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    train(store, run, local_host(store, run, SCALE))
    [found] = runs(f"sqlite:///{tmp_path}/mlflow.db", run)
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_that_does_not_answer_stops_no_training(
    teacher_store, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    train(store, run, local_host(store, run, SCALE))
    assert store.has(run) and "mlflow stops recording" in caplog.text


@pytest.mark.slow
def test_processes_that_begin_together_share_one_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code = (
        "import sys; from raykd.storage.store import Store; from tests.small import teacher_run;"
        "from raykd.tracking.mlflow import MLflow; store = Store(sys.argv[1]);"
        "run = teacher_run(store, seed=int(sys.argv[2])); log = MLflow(store); log.begin(run, []);"
        "[log.epoch(run, {'epoch': epoch, 'loss': 1.0}) for epoch in range(9)]; log.end(run, None)"
    )
    teacher_run(Store(tmp_path))  # reads the images
    begun = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(seed)]) for seed in (0, 1)
    ]
    assert [process.wait() for process in begun] == [0, 0]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for seed in (0, 1):
        [found] = runs(uri, teacher_run(Store(tmp_path), seed=seed))
        history = client_of(uri).get_metric_history(found.info.run_id, "loss")
        assert [row.step for row in history] == [*range(9)]
