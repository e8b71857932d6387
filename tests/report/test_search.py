import re
from dataclasses import replace

import pytest

from raykd.config.experiment import parse
from raykd.report import console_table, gather_sweep, to_json, to_markdown
from raykd.report.charts import charts
from raykd.report.comparison import conclusion
from raykd.report.page import page
from raykd.report.search_charts import drawn_values
from raykd.report.tables import rows, trial_rows
from raykd.training.sweep_sheets import Sheet, sweep_name, write_sheet
from tests.report.stored import DATA, EPOCHS, put

TEXT = f"""
run:
  model: resnet8
  data: {DATA.replace("}", ", validation: 0.2}")}
  teacher: {{model: resnet8x4}}
  optim: {{epochs: {EPOCHS}, batch: 50}}
grid:
  run.method: [label_only, kd]
search:
  run.optim.lr: {{loguniform: [0.01, 0.1]}}
  run.optim.nesterov: {{choice: [true, false]}}
sweep: {{samples: 3, scheduler: asha}}
"""
TRIALS = (  # method, rate, nesterov, epochs, validation top-1
    ("label_only", 0.0123456789012345, True, 4, 80.0),
    ("label_only", 0.02, False, 4, 82.0),
    ("label_only", 0.05, True, 2, 90.0),
    ("kd", 0.0301234567, True, 4, 85.0),
    ("kd", 0.04, False, 2, 70.0),
    ("kd", 0.08, False, 1, 10.0),
)


def searched(store, trials=TRIALS):
    """The report of a search with these trials; those of fewer epochs were stopped early."""
    experiment = parse(TEXT, "search")
    for number, (method, lr, nesterov, epochs, value) in enumerate(trials):
        config = {"run.method": method, "run.optim.lr": lr, "run.optim.nesterov": nesterov}
        run = experiment.space.student(config)
        done = epochs == EPOCHS
        put(store, run, value - 5, epochs=epochs, finish=done, validation_top1=value)
        last = {"validation_top1": value, "top1": value - 5, "epochs_done": epochs}
        state = "finished" if done else "stopped"
        sheet = Sheet(f"{number:05d}", config, "s", state, run, None, 10.0, last)
        write_sheet(store, sweep_name(experiment), sheet)
    return gather_sweep(store, experiment)


@pytest.fixture
def report(store):
    return searched(store)


def test_the_table_has_the_best_trial_of_each_method(report):
    lines = [(group.label, row["validation %"]) for group, row in rows(report)][1:]
    assert lines == [
        ("kd lr=0.03012 nesterov=true", "85.00"),
        ("label_only lr=0.02 nesterov=false", "82.00"),
    ]
    assert console_table(report).row_count == 3
    assert len(report.students) == 6  # all of them are in the data


def test_trials_stand_by_what_decides_with_the_epoch_that_they_reached(report):
    table = [
        (row["trial"], row["state"], row["validation top-1 %"]) for _, row in trial_rows(report)
    ]
    assert table == [
        ("00002", "stopped at epoch 2 of 4", "90.00"),
        ("00003", "finished", "85.00"),
        ("00001", "finished", "82.00"),
        ("00000", "finished", "80.00"),
        ("00004", "stopped at epoch 2 of 4", "70.00"),
        ("00005", "stopped at epoch 1 of 4", "10.00"),
    ]
    assert trial_rows(report)[3][1]["settings"] == (
        "method=label_only optim.lr=0.01235 optim.nesterov=True"
    )


def test_a_method_all_of_whose_trials_were_stopped_says_how_far_they_came(store):
    report = searched(store, [*TRIALS[:2], *TRIALS[4:]])
    row = next(row for group, row in rows(report) if group.label.startswith("kd"))
    assert row["top-1 %"] == "65.00 at epoch 2"


def test_a_given_teacher_whose_embeddings_have_no_score_reached_no_epoch(report):
    (teacher,) = report.teachers
    given = replace(teacher.runs[0], result={"last": {}}, metrics=())
    report = replace(report, teachers=(replace(teacher, runs=(given,)),))
    assert rows(report)[0][1]["top-1 %"] == "-"


def test_the_sentence_names_the_best_trial_and_concludes_nothing(report):
    assert conclusion(report) == (
        "Nothing can be told apart: each trial has one seed; the best of 6 by validation top-1 % "
        "is kd lr=0.03012 nesterov=true with 85.00 (top-1 on the test images: 80.00 %); 3 stopped "
        "early; run it with several seeds to compare it."
    )


def test_what_was_reached_is_drawn_against_each_value(report):
    by_rate, by_nesterov = drawn_values(report)
    assert by_rate.title == "Validation top-1 % by optim.lr"
    assert "0.01235: 80.00" in by_rate.picture.alt
    assert "0.05: 90.00 (stopped)" in by_rate.picture.alt
    assert "True: 80.00" in by_nesterov.picture.alt


def test_only_the_best_trials_are_in_the_foreground_of_curves(report):
    text = next(iter(charts(report))).picture
    assert "kd lr=0.03012 nesterov=true 80.00" in text.alt
    assert "lr=0.05" not in text.alt
    assert text.svg.count("opacity: 0.25") == 4


def test_the_page_of_a_search_lists_every_trial_and_leads_to_it(report):
    text = page(report)
    assert "stopped at epoch 2 of 4" in text and "by optim.lr" in text
    links = re.findall(r'href="#([^"]+)"', text)
    assert all(f'id="{link}"' in text for link in links)
    first = re.search(r'href="#(runs-0)">(\w+)', text)
    assert first and re.search(rf'id="{first[1]}">{first[2]}', text)
    assert "stands here, which favours" in to_markdown(report)


def test_json_has_what_trials_reached(report):
    trial = to_json(report)["trials"][2]
    assert (trial["epochs"], trial["asked"], trial["value"], trial["score"]) == (2, 4, 90.0, 85.0)
    assert to_json(report)["drawn"]["metric"] == "validation_top1"
