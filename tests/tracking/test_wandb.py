"""Runs of Weights & Biases, offline, as its own records have them."""

import importlib.util
import json

import pytest

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.planning.preflight import preflight
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers, read_metrics
from raykd.tracking.logger import Labels
from raykd.training import checkpointing
from raykd.training.runs import local_host, train
from tests.small import student_run
from tests.tracking.interrupted import StopAt
from tests.training.test_loop import Stop, twin

SCALE = Scale(track=("wandb",), checkpoint_seconds=0)
LABELS = Labels("grid", "trial-3")
pytestmark = [
    pytest.mark.slow,
    # Imported where it is needed, since that takes a second of each run of pytest.
    pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="no W&B"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


def folders(store):
    return sorted((store.root / "wandb").glob("offline-run-*"))


def test_a_resumed_training_is_one_run_with_each_epoch_once(teacher_store, tmp_path):
    from tests.tracking.wandb_files import history, records

    store = twin(teacher_store, tmp_path)
    run = student_run(store)
    with pytest.raises(Stop):
        train(store, run, local_host(store, run, SCALE, [StopAt(1)], labels=LABELS))
    [before] = folders(store)
    assert [row["_step"] for row in history(before)] == [0, 1]
    train(store, run, local_host(store, run, SCALE, labels=LABELS))
    [after] = folders(store)
    rows = history(after)
    assert [row["epoch"] for row in rows] == [row["_step"] for row in rows] == [0, 1, 2]
    for row, metrics in zip(rows, read_metrics(store.path(run)), strict=True):
        assert {name: row[name] for name in numbers(metrics)} == numbers(metrics)
    kinds = {}
    for record in records(after):
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    [begun] = kinds["run"]
    assert begun.run.run_id == fingerprint(run)
    assert begun.run.run_group == "grid" and begun.run.project == "raykd"
    assert begun.run.job_type == "students"
    config = {item.key: json.loads(item.value_json) for item in begun.run.config.update}
    assert {key: config[key] for key in run.plain()} == run.plain()
    assert config["trial"] == "trial-3"
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in kinds["summary"]
        for item in record.summary.update
    }
    result = checkpointing.read_result(store.path(run), checkpointing.Tested)
    assert summary["best_top1"] == result["best"]["top1"]
    assert summary["parameters"] == result["parameters"]
    assert [record.exit.exit_code for record in kinds["exit"]] == [0]


def test_two_trainings_follow_one_another_in_a_process(teacher_store, tmp_path):
    from tests.tracking.wandb_files import history

    store = twin(teacher_store, tmp_path)
    runs = [student_run(store), student_run(store, seed=1)]
    for run in runs:
        train(store, run, local_host(store, run, SCALE))
    by_id = {folder.name.rpartition("-")[2]: folder for folder in folders(store)}
    assert by_id.keys() == {*map(fingerprint, runs)}
    assert all(len(history(folder)) == 3 for folder in by_id.values())


def test_a_missing_key_is_reported_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    wandb.teardown()
    store = Store(tmp_path / "store")
    experiment = Experiment("small", (student_run(store),), Scale(track=("wandb",)))
    with pytest.raises(ConfigError, match=r"scale\.track: wandb knows no API key; run `wandb log"):
        preflight(experiment, store)
    wandb.teardown()
