import csv
import io
from dataclasses import replace

import pytest

from raykd.config.experiment import Experiment, parse
from raykd.report import Trial, console_table, gather, to_csv, to_json, to_markdown
from raykd.report.page import page
from raykd.storage.store import read_json, write_json
from raykd.training.checkpointing import RESULT
from tests.report.stored import TEXT, finished, put

COLUMNS = (
    "label network seed fingerprint state top1 best validation_top1 agreement kl knn_top1 "
    "linear_top1 cka recall_at_1 map map_at_r verification parameters flops latency_ms seconds "
    "images_per_second hardware"
)


def rows(report):
    return [*csv.DictReader(io.StringIO(to_csv(report)))]


def test_csv_has_a_row_per_run(report):
    found = rows(report)
    assert [*found[0]] == COLUMNS.split()
    assert len(found) == 1 + 12
    assert len({row["fingerprint"] for row in found}) == 13
    (row,) = (row for row in found if row["label"] == "kd" and row["seed"] == "2")
    assert float(row["top1"]) == 95.0
    assert float(row["best"]) == 95.5
    assert (row["parameters"], row["flops"]) == ("78042", "1600000")
    assert row["hardware"] == "a <fast> processor (2 cores)"
    assert row["validation_top1"] == ""


def test_csv_has_runs_that_are_not_finished(store, experiment):
    put(store, experiment.runs[0], 90.0, epochs=2, finish=False, kl=0.5)
    states = [row["state"] for row in rows(gather(store, experiment))]
    assert states.count("epoch 2 of 4") == 1
    assert states.count("not started") == 12
    assert all(row["top1"] == row["kl"] == "" for row in rows(gather(store, experiment)))


def test_a_label_with_a_comma_is_one_cell(store):
    text = TEXT.replace("label_only, ", "").replace("optim: {", "route: ROUTE\n  optim: {")
    text = text.replace("ROUTE", "{anchors: [10, 240], starts: [0, 2]}").replace(
        "grid:", "grid:\n  run.views: [1, 2]"
    )
    found = rows(gather(store, parse(text, "commas")))
    assert all(row["network"] in ("resnet8", "resnet8x4") for row in found)


@pytest.mark.slow
def test_validation_is_a_column_where_there_is_any(store):
    experiment = parse(TEXT.replace("size: [8, 8]}", "size: [8, 8], validation: 0.2}"), "held out")
    for run in experiment.runs:
        put(store, run, 90.0, validation_top1=81.5)
    report = gather(store, experiment)
    assert report.students[0].validation.mean == 81.5
    assert {row["validation_top1"] for row in rows(report)[1:]} == {"81.5"}
    for text in (to_markdown(report), page(report)):
        assert "validation %" in text
        assert "chosen on validation images that nothing was trained on" in text
        assert "optimistic" not in text


@pytest.mark.slow
def test_the_best_epoch_is_said_to_flatter_without_validation(report, written):
    for text in (to_markdown(report), written):
        assert "chosen on the test images and is optimistic" in text
        assert "validation" not in text.partition("Runs")[0]


@pytest.mark.slow
def test_results_from_before_forwards_were_measured_are_shown(store, experiment):
    finished(store, experiment)
    for path in store.root.glob(f"*/*/{RESULT}"):
        result = read_json(path)
        del result["flops"], result["latency_ms"]
        write_json(path, result)
    report = gather(store, experiment)
    assert {group.flops for group in report.groups()} == {None}
    assert {row["flops"] for row in rows(report)} == {""}
    written = page(report)
    assert "Top-1 by number of parameters" in written
    assert "Top-1 by FLOPs" not in written


TRIALS = (
    Trial("0001", {"run.optim.lr": 0.1, "run.method": "kd"}, None, "finished", None, 75.0),
    Trial(
        "0002", {"run.optim.lr": 9.0}, None, "failed", "the loss is <not> finite; lower it", None
    ),
)


@pytest.mark.slow
def test_trials_are_shown_with_the_failed_ones_first(report):
    name = report.students[0].runs[0].fingerprint
    other = Trial("0003", {}, "f" * 20, "finished", None, 1.0)
    trials = (replace(TRIALS[0], fingerprint=name), TRIALS[1], other)
    report = replace(report, trials=trials)
    text, written = to_markdown(report), page(report)
    assert rf"| 0001 | finished | optim.lr=0.1 method=kd | 1 min 15 s | {name} |  |" in text
    for shown in (text, written):
        assert 0 < shown.index("0002") < shown.index("0001")
    assert "the loss is &lt;not&gt; finite; lower it" in written
    assert [trial["name"] for trial in to_json(report)["trials"]] == ["0001", "0002", "0003"]
    # A trial leads to its student where the page lists it.
    assert f'<a href="#{name}">{name}</a>' in written
    assert f'href="#{"f" * 20}"' not in written


def test_without_trials_there_is_no_such_section(report, written):
    assert "Trials" not in written
    assert "Trials" not in to_markdown(report)


def test_an_experiment_of_which_no_student_is_known_can_be_shown(store, experiment):
    none = Experiment("none", (), experiment.scale)
    report = gather(store, none, TRIALS[1:])
    assert "No student is known yet" in page(report)
    assert "not\\> finite" in to_markdown(report)
    assert rows(report) == []
    assert console_table(report).row_count == 0
