import io
import json
import re

from rich.console import Console

from raykd.config.experiment import parse
from raykd.report import console_table, gather, to_csv, to_json, to_markdown
from raykd.report.page import page
from raykd.report.tables import cells
from tests.report.stored import TEXT, finished, put


def by_label(report):
    return {group.label: group for group in report.students}


def shown(report):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(console_table(report))
    return console.export_text()


def test_unfinished_runs_are_shown(store, experiment):
    runs = {(run.method.name, run.seed): run for run in experiment.runs}
    put(store, runs["kd", 0], 92.0)
    put(store, runs["kd", 1], 50.0, epochs=3, finish=False)
    report = gather(store, experiment)
    kd = by_label(report)["kd"]
    assert [run.state() for run in kd.runs] == ["finished", "epoch 3 of 4", "not started"]
    assert (kd.score.n, kd.score.mean, kd.score.std) == (1, 92.0, None)
    assert cells(kd)["n"] == "1 of 3"
    assert cells(by_label(report)["label_only"])["n"] == "0 of 3"
    for text in (to_markdown(report), page(report)):
        assert "1 of 12 runs are finished" in text
        assert text.count("epoch 3 of 4") == 1
        assert text.count("not started") == 11  # ten students and the teacher
    assert "1 of 3" in shown(report)


def test_the_console_table_fits_100_columns(report):
    lines = shown(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(re.search(r"1-3 +kd +resnet8 +93\.17 \+- 1\.61 +3 +93\.67", line) for line in lines)


def test_markdown_and_json_agree(report):
    value = to_json(report)
    rows = [line for line in to_markdown(report).splitlines() if line.startswith("| ")]
    table = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    ranked = sorted(value["students"], key=lambda group: -group["score"]["mean"])
    groups = value["teachers"] + ranked
    assert len(table) == 2 + len(groups)
    for row, group in zip(table[2:], groups, strict=True):
        cell = dict(zip(table[0], row, strict=True))
        mean, _, std = cell["top-1 %"].partition(" +- ")
        assert mean == f"{group['score']['mean']:.2f}"
        assert std == (f"{group['score']['std']:.2f}" if std else "")
        assert cell["n"] == str(len(group["runs"]))
        assert cell["best %"] == f"{group['best']['mean']:.2f}"
        if group["gain"]:
            assert cell["vs label_only"].startswith(f"{group['gain']['mean']:+.2f}")


def test_json_holds_every_recipe_and_no_infinity(store, experiment):
    run = experiment.runs[0]
    put(store, run, 90.0, loss=float("nan"))
    value = to_json(gather(store, experiment))
    first = json.loads(json.dumps(value, allow_nan=False))["students"][0]["runs"][0]
    assert type(run).read(first["recipe"]) == run
    assert first["fingerprint"] == store.path(run).name
    assert first["metrics"][0]["loss"] is None


def test_names_from_files_are_text_in_a_table(store):
    evil = "\"><script>alert('&')</script>[bold]"
    text = TEXT.replace("{model: resnet8x4}", "{model: resnet8x4, weights: WEIGHTS}")
    experiment = parse(text.replace("WEIGHTS", json.dumps(evil)), evil)
    finished(store, experiment)
    report = gather(store, experiment)
    assert not re.search(r"(?<!\\)<", to_markdown(report))
    assert evil in shown(report)


def test_a_report_of_backbones_speaks_of_no_labels_and_shows_all_measures(store):
    text = """
run:
  model: resnet8
  data: {name: digits, labels: none, digest: 0123456789abcdef0123, classes: 0, size: [8, 8]}
  task: {name: features, probe: {data: {name: digits}, kind: [linear]}}
  method: feature_distillation
  teacher: {model: resnet8x4, weights: sha256:0, outputs: 0}
  optim: {epochs: 4, batch: 50}
"""
    experiment = parse(text, "backbones")
    (run,) = experiment.runs
    put(store, run, 1.0, without=["top1"], cka=80.0, knn_top1=50.0, linear_top1=60.0)
    report = gather(store, experiment)
    assert (report.heading, report.others) == ("linear %", ("knn_top1", "cka"))
    assert re.search(r"60\.00 +1 +60\.00 +50\.00 +80\.00 ", shown(report))
    for text in (to_markdown(report), page(report)):
        assert "50.00" in text and "80.00" in text
        for word in ("label_only", "agreement", "Agreement", "KL", "top-1", "nan"):
            assert word not in text, word
    assert ",50.0,60.0,80.0," in to_csv(report)
