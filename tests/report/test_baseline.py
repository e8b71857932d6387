import pytest

from raykd.config.experiment import parse
from raykd.core.errors import ConfigError
from raykd.planning.plan import plan
from raykd.report import gather, to_markdown
from raykd.report.page import page
from tests.report.stored import TEXT, TOP1, finished, put


def gains(report):
    return {report.called(group): group.gain for group in report.students}


def test_a_line_that_is_named_is_the_baseline(store, experiment):
    finished(store, experiment)
    report = gather(store, experiment, baseline="kd")
    found = gains(report)
    pairs = zip(TOP1["label_only"], TOP1["kd"], strict=True)
    assert found["kd"] is None
    assert found["label_only"].n == 3
    assert found["label_only"].mean == pytest.approx(sum(own - kd for own, kd in pairs) / 3)
    for text in (to_markdown(report), page(report)):
        assert "vs baseline" in text
        assert "vs label" not in text


def test_students_are_compared_with_the_baseline_of_their_network(store):
    text = TEXT.replace("grid:", "grid:\n  run.model: [resnet8, resnet14]")
    experiment = parse(text, "networks")
    work = plan(experiment.runs)
    for run in (*work.teachers, *work.students):
        put(store, run, (50.0 if run.model == "resnet14" else 80.0) + run.seed)
    own = gains(gather(store, experiment, baseline="kd"))
    assert own["label_only resnet8"].mean == own["label_only resnet14"].mean == 0.0
    assert own["kd resnet8"] is own["kd resnet14"] is None
    one = gains(gather(store, experiment, baseline="kd resnet8"))
    assert one["kd resnet8"] is None
    assert one["kd resnet14"].mean == -30.0


def test_a_baseline_that_no_line_is_called_is_an_error(store, experiment):
    with pytest.raises(ConfigError, match=r"'kdd'; did you mean 'kd'\?"):
        gather(store, experiment, baseline="kdd")
    with pytest.raises(ConfigError, match="there are: 'label_only', 'kd', "):
        gather(store, experiment, baseline="nothing like it")


def test_a_report_says_where_there_is_no_baseline(store):
    experiment = parse(TEXT.replace("label_only, ", ""), "alone")
    finished(store, experiment)
    hint = "the experiment has none, so add label\\_only, or name a line with --baseline"
    assert hint in to_markdown(gather(store, experiment))
    assert hint not in to_markdown(gather(store, experiment, baseline="kd"))
