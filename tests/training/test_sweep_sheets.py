"""Sheets of a sweep in the store, and the table of its trials."""

import csv

import pyarrow as pa
import pytest

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.record import fingerprint
from raykd.recipes import RCO, SearchedStudent
from raykd.storage.store import Store
from raykd.training.sweep_sheets import (
    Sheet,
    read_sheet,
    read_sheets,
    sweep_name,
    with_drawn_students,
    write_results,
    write_sheet,
)
from tests.small import digits, prepare, student_run, teacher_run, trained

TEXT = """
run:
  model: resnet8
  data: {name: digits, limit: 96}
  teacher: {model: resnet8, optim: {epochs: 1}}
grid: {run.seed: [0, 1]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def sought(store: Store) -> SearchedStudent:
    data = digits(store, limit=96, validation=0.2)
    teacher = teacher_run(store, data=digits(store, limit=320, validation=0.2))
    run = student_run(store, data=data, teacher=teacher)
    found = RCO(select="greedy", stages="one_stage").students(run)
    assert isinstance(found, SearchedStudent)
    return found


def test_a_sheet_is_read_as_it_was_written(store):
    sheets = [
        Sheet("00", {"run.seed": 0}, "one", "finished", student_run(store), None, 1.5),
        Sheet("01", {"run.seed": 1}, "one", "failed", None, "a sentence", 0.5),
        Sheet("02", {"run.rco.select": "greedy"}, "one", "running", sought(store)),
    ]
    for sheet in reversed(sheets):
        write_sheet(store, "sweep", sheet)
    assert read_sheets(store, "sweep") == sheets
    assert read_sheet(store, "sweep", "01") == sheets[1]
    assert read_sheet(store, "sweep", "03") is None


def test_the_table_has_a_line_per_trial_and_is_the_same_in_both_files(store):
    run = student_run(store, teacher=teacher_run(store, data=digits(store, limit=96)))
    prepare(store, run)
    trained(store, run)
    for sheet in (
        Sheet("00", {"run.seed": 0, "run.method": "kd"}, "one", "finished", run),
        Sheet("01", {"run.seed": 1, "run.method": 5}, "one", "failed", None, "a, sentence"),
    ):
        write_sheet(store, "table", sheet)
    path = write_results(store, "table")
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert [line["state"] for line in lines] == ["finished", "failed"]
    assert [line["run.method"] for line in lines] == ["kd", "5"]
    assert lines[0]["fingerprint"] == fingerprint(run) and lines[0]["anchors"] == "2"
    assert lines[1]["error"] == "a, sentence" and lines[1]["top1"] == ""
    table = pa.ipc.open_file(path.with_suffix(".arrow")).read_all()
    assert table["top1"].to_pylist()[0] == float(lines[0]["top1"])
    assert table["run.seed"].type == pa.int64()


def test_a_sweep_is_named_by_what_it_varies(store):
    names = {
        sweep_name(resolve(parse(TEXT, "digits", overrides), store))
        for overrides in ([], ["grid.run.seed=[0]"], ["run.optim.lr=0.1"], ["sweep.samples=2"])
    }
    assert len(names) == 4 and all(name.startswith("digits-") for name in names)
    again = sweep_name(resolve(parse(TEXT, "digits", ["scale.workers=3"]), store))
    assert again in names


def test_a_grid_asks_for_all_of_it_and_a_search_for_what_it_drew(store):
    grid = resolve(parse(TEXT, "digits"), store)
    assert with_drawn_students(grid, store)[0].runs == grid.runs
    more = "search: {run.optim.lr: {uniform: [0.01, 0.1]}}"
    drawn = resolve(parse(TEXT + more, "digits"), store)
    assert with_drawn_students(drawn, store)[0].runs == ()
    run = student_run(store)
    write_sheet(store, sweep_name(drawn), Sheet("00", {}, "one", "finished", run))
    assert with_drawn_students(drawn, store)[0].runs == (run,)
