import math
import re

from raykd.config.experiment import parse
from raykd.planning.plan import plan
from raykd.report import gather
from raykd.report.charts import front
from raykd.report.tables import rows
from tests.report.stored import TEXT, TOP1, put


def order(report):
    return [(row["rank"], group.label) for group, row in rows(report)]


def test_students_stand_by_their_top1_below_teachers(report):
    assert order(report) == [
        ("", "teacher"),
        ("1-3", "kd"),
        ("", "spherical_kd temperature=2.0"),
        ("", "spherical_kd temperature=4.0"),
        ("2-4", "label_only"),
    ]


def test_unfinished_students_stand_at_the_end_without_a_rank(store, experiment):
    for run in experiment.runs:
        if run.method.name == "label_only" or (run.method.name == "kd" and run.seed == 0):
            put(store, run, TOP1[run.method.name][run.seed])
    assert order(gather(store, experiment))[:3] == [
        ("", "teacher"),
        ("1", "label_only"),
        ("", "kd"),
    ]


def test_a_student_that_teaches_is_an_assistant(store):
    text = TEXT.replace("grid:", "grid:\n  run.assistants: [[], [resnet14]]")
    experiment = parse(text, "assistants")
    work = plan(experiment.runs)
    for run in (*work.teachers, *work.students):
        put(store, run, 90.0)
    report = gather(store, experiment)
    assert [group.label for group in report.teachers] == [
        "teacher",
        "assistant kd",
        "assistant spherical_kd temperature=2.0",
        "assistant spherical_kd temperature=4.0",
    ]
    assert "kd via resnet14" in [group.label for group in report.students]


def test_every_run_is_listed_with_its_numbers(written):
    line = "seed 1, finished after 9 s: top-1 92.50 %, best 93.00 %, agreement 81.00 %, KL 0.250"
    assert len(re.findall(re.escape(line), written)) == 1


def test_the_front_is_what_nothing_cheaper_surpasses():
    assert front([]) == []
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 80.0), (1.0, 70.0), (4.0, 85.0), (5.0, 95.0)]
    assert front(points) == [1, 0, 5]


def test_a_student_without_finite_numbers_stands_at_the_end_without_a_rank(store, experiment):
    for run in experiment.runs:
        wrong = run.method.name == "kd" and run.seed == 1
        put(store, run, 99.0 if wrong else 90.0, test_loss=math.nan if wrong else 1.0)
    report = gather(store, experiment)
    assert order(report)[-1] == ("", "kd")
    [group] = [group for group in report.students if group.label == "kd"]
    assert [run.state() for run in group.runs] == ["finished", "not finite", "finished"]
