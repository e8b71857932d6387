"""The study of the number of views: what it compares, and that it can be carried out."""

import csv
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from experiments.studies.views_study import FULL, LABELS, SHORT, TINY, main, planned
from raykd.config.experiment import load
from tests.each import each

SMALL = {
    "--epochs": "2",
    "--seeds": "2",
    "--models": "resnet8:resnet8",
    "--views": "1,all,live",
    "--set": "run.teacher.optim.epochs=1",
}


def arms_of(preset, method="kd"):
    return planned(preset, "study", method, None, ())


@pytest.mark.slow
@each("preset", [SHORT, TINY, FULL], ids=["short", "tiny", "full"])
def test_the_students_differ_in_their_views_alone(preset):
    arms = arms_of(preset)
    everything = arms["all"].students()
    assert [run.seed for run in everything] == [*range(preset.seeds)]
    same = {"views": "all", "source": "auto"}
    for arm, experiment in arms.items():
        runs = experiment.students()
        method = runs[0].method if arm == LABELS else everything[0].method
        alike = [run.model_copy(update=same | {"method": method}) for run in runs]
        assert alike == [run.model_copy(update={"method": method}) for run in everything]
        assert runs[0].view_count() == (int(arm) if arm.isdecimal() else everything[0].view_count())
        assert all(run.cached() == (arm != "live") for run in runs)


def test_the_short_study_has_the_teacher_of_the_other_tables(request):
    (teacher,) = {
        run.teacher
        for run in load(request.config.rootpath / "experiments/recipes/cifar10.yaml").runs
    }
    assert {run.teacher for arm in arms_of(SHORT).values() for run in arm.students()} == {teacher}


def test_the_full_study_has_the_benchmarks_recipe():
    run = arms_of(FULL)["all"].students()[0]
    assert (run.teacher.model, run.model, run.view_count()) == ("resnet56", "resnet20", 162)
    for optim in (run.optim, run.teacher.optim):
        assert (optim.epochs, optim.batch, optim.lr, optim.weight_decay) == (240, 64, 0.05, 5e-4)
        assert optim.milestones in (None, (150, 180, 210))


@each(
    ("words", "message"),
    [
        (["--full"], "two recipes were asked for"),
        (["--views", "live"], "nothing comes from a cache"),
        (["--views", "1,some"], "'some' is none of a number, 'all' and 'live'"),
        (["--views", "1,99"], "48 epochs show 9 different views, which are `all`; leave 99 out"),
        (["--method", "at"], "'at' asks the teacher's network itself"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_read(tmp_path, words, message):
    result = CliRunner().invoke(main, ["--tiny", "--store", str(tmp_path / "store"), *words])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_the_study_ends_with_a_table_and_goes_on_where_it_was(tmp_path):
    words = ["--tiny", "--store", str(tmp_path), *(word for pair in SMALL.items() for word in pair)]
    first = CliRunner().invoke(main, words, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    reports = tmp_path / "reports"
    rows = read(reports / "views_study-digits.csv")
    assert [row["views"] for row in rows] == ["1", "all (2)", "live (2)", f"{LABELS} (2)"]
    assert {row["n"] for row in rows} == {"2"}
    assert [row["vs all, 95 % interval"] != "" for row in rows] == [True, False, True, True]
    assert rows[2]["cost of one"] == rows[2]["of 10"] == "1.00"
    assert "equal weights" in (reports / "views_study-digits.md").read_text()
    assert ET.parse(reports / "views_study-digits.svg").getroot().tag.endswith("svg")
    again = CliRunner().invoke(main, words, catch_exceptions=False)
    assert "to train: nothing" in again.output
    kept = ("views", "top-1 %", "fingerprints")
    assert [[row[key] for key in kept] for row in read(reports / "views_study-digits.csv")] == [
        [row[key] for key in kept] for row in rows
    ]


def read(path):
    with path.open() as file:
        return [*csv.DictReader(file)]
