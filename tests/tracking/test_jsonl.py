"""metrics.jsonl: what is written, and what is read of it."""

import json

import pytest

from raykd.storage.store import Store
from raykd.tracking.jsonl import METRICS, JsonLines, following, read_metrics
from tests.small import student_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return student_run(Store(tmp_path_factory.mktemp("store")))


def test_metrics_are_lines_of_json(tmp_path, run):
    JsonLines(tmp_path).epoch(run, {"epoch": 0, "top1": 12.5})
    assert json.loads((tmp_path / METRICS).read_text()) == {"epoch": 0, "top1": 12.5}


def test_a_resumed_run_keeps_only_the_lines_of_its_checkpoint(tmp_path, run):
    lines = JsonLines(tmp_path)
    for epoch in range(3):
        lines.epoch(run, {"epoch": epoch})
    lines.begin(run, [{"epoch": 0}])
    lines.epoch(run, {"epoch": 1, "top1": 1.0})
    assert read_metrics(tmp_path) == [{"epoch": 0}, {"epoch": 1, "top1": 1.0}]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    (tmp_path / METRICS).write_text('{"epoch": 0}\n{"epo')
    assert read_metrics(tmp_path) == [{"epoch": 0}]
    assert read_metrics(tmp_path / "nothing") == []


def test_a_logger_follows_the_epochs_that_another_process_writes(tmp_path, run):
    class Recorder:
        def __init__(self):
            self.calls = []

        def begin(self, run, history):
            self.calls.append(("begin", [line["epoch"] for line in history]))

        def epoch(self, run, metrics):
            self.calls.append(("epoch", metrics["epoch"]))

        def end(self, run, result):
            self.calls.append(("end", result))

    store, recorder = Store(tmp_path / "store"), Recorder()
    lines = JsonLines(store.path(run))
    lines.path.parent.mkdir(parents=True)
    lines.epoch(run, {"epoch": 0, "loss": 1.0})
    with following(store, run, recorder):
        lines.begin(run, [{"epoch": 0, "loss": 1.0}])
        lines.epoch(run, {"epoch": 1, "loss": 1.0})
        lines.epoch(run, {"epoch": 2, "loss": 1.0})
    assert recorder.calls == [("begin", [0]), ("epoch", 1), ("epoch", 2), ("end", None)]
