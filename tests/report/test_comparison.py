import pytest

from raykd.config.experiment import parse
from raykd.report import gather, to_markdown
from raykd.report.comparison import conclusion, difference, standings
from raykd.report.page import page
from raykd.report.tables import rows
from tests.report.stored import DATA, TEXT, put

SEEDS = f"""
run: {{model: resnet8, data: {DATA}, optim: {{epochs: 4, batch: 50}}, teacher: {{model: resnet14}}}}
grid:
  run.method: [label_only, kd, at, sp]
  run.seed: [0, 1, 2]
"""


def reported(store, scores):
    """The report of students with these accuracies, by method and seed."""
    experiment = parse(SEEDS, "seeds")
    for run in experiment.runs:
        values = scores.get(run.method.name, ())
        if run.seed < len(values):
            put(store, run, values[run.seed])
    return gather(store, experiment)


def ranks(report):
    return {group.label: row["rank"] for group, row in rows(report) if group in report.students}


def test_lines_are_paired_by_seed(store):
    report = reported(store, {"label_only": (80.0, 85.0, 90.0), "kd": (81.0, 86.5, 91.0)})
    by_label = {group.label: group for group in report.students}
    gap = difference(by_label["kd"], by_label["label_only"], "top1")
    assert (gap.n, round(gap.mean, 3)) == (3, 1.167)
    assert 0 < gap.low < gap.mean < gap.high  # though the seeds lie 5 points apart


def test_a_rank_is_given_as_far_as_the_intervals_tell(store):
    scores = {
        "kd": (90.0, 91.0, 92.0),
        "at": (89.9, 91.2, 91.9),
        "label_only": (80.0, 81.0, 82.1),
        "sp": (70.0, 71.0, 72.1),
    }
    report = reported(store, scores)
    assert ranks(report) == {"kd": "1-2", "at": "1-2", "label_only": "3", "sp": "4"}
    best = standings(report)[0][1]
    assert [group.label for group in best.below] == ["label_only", "sp"]


def test_where_nothing_can_be_told_apart_no_line_has_a_rank(store):
    scores = {"kd": (90.0, 91.0, 92.0), "at": (91.0, 90.0, 92.0), "sp": (92.0, 90.5, 90.5)}
    report = reported(store, scores)
    assert set(ranks(report).values()) == {""}
    assert conclusion(report) == (
        "Nothing can be told apart (95 % intervals of the differences seed by seed, n = 3); the "
        "highest is kd with top-1 91.00 %; 1 more are not finished."
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, "Nothing can be concluded yet: no line of students is finished."),
        ({"kd": (90.0, 91.0, 92.0)}, "kd has top-1 91.00 %, and there is nothing to compare"),
        (
            {"kd": (90.0, 91.0, 92.0), "label_only": (80.0, 81.0, 82.1)},
            "kd is the best of 2 (top-1 91.00 %); over label_only: kd +9.97 [+9.82, +10.11]; 2 ",
        ),
        (
            {"kd": (80.0, 81.0, 82.1), "label_only": (90.0, 91.0, 92.0)},
            "label_only is the best of 2 (top-1 91.00 %); below label_only: kd; 2 more are not",
        ),
        (
            {
                "kd": (90.0, 91.0, 92.0),
                "at": (90.1, 90.8, 92.1),
                "sp": (80.0, 81.0, 82.1),
            },
            "kd (top-1 91.00 %) is above sp, and not told apart from at; 1 more",
        ),
    ],
)
def test_the_sentence_on_top_says_what_follows(store, scores, expected):
    assert conclusion(reported(store, scores)).startswith(expected)


def test_single_seeds_allow_no_conclusion(store):
    experiment = parse(TEXT.replace("[0, 1, 2]", "[0]"), "single")
    for number, run in enumerate(experiment.runs):
        put(store, run, 90.0 + number)
    report = gather(store, experiment)
    assert set(ranks(report).values()) == {""}
    assert conclusion(report).startswith("Nothing can be told apart: each line has one seed; the ")


def test_the_sentence_stands_on_top_of_every_form(report):
    text = conclusion(report)
    assert page(report).index(text.partition(";")[0]) < page(report).index("<h2>")
    assert to_markdown(report).splitlines()[2].startswith("**kd ")
