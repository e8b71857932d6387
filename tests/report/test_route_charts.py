import re
from dataclasses import replace

import numpy as np
import pytest

from raykd.config.experiment import parse
from raykd.recipes import StudentRun
from raykd.report import gather, to_json, to_markdown
from raykd.report.page import page
from raykd.report.route_charts import legs, ratios, route_charts
from raykd.storage.store import Store
from tests.report.stored import EPOCHS, ROUTES, decide, put, routed
from tests.tiers import slow_but


@pytest.fixture
def experiment():
    return parse(ROUTES, "routes")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    store, experiment = Store(tmp_path_factory.mktemp("routes")), parse(ROUTES, "routes")
    routed(store, experiment)
    return gather(store, experiment)


def test_a_line_is_a_rule_and_a_stage_is_none(report):
    assert [group.label for group in report.students] == [
        "kd greedy threshold=1.6 multi_stage",  # the seeds' searches went to different anchors
        "kd greedy threshold=1.6 one_stage",
        "kd anchors=[2,4,6,8] multi_stage",
        "kd anchors=[2,4,6,8] one_stage",
    ]
    assert all([run.seed for run in group.runs] == [0, 1] for group in report.students)
    assert [group.label for group in report.stages] == [
        "stage kd anchors=[2]",
        "stage kd anchors=[2,6] multi_stage",
        "stage kd anchors=[2,4] multi_stage",
        "stage kd anchors=[2,4,6] multi_stage",
    ]


def test_a_search_that_is_not_finished_is_a_run_that_is_not(store, experiment):
    (first, _) = experiment.searches()
    decide(store, first, 2, 6)
    put(store, first.stage((2,)), 80.0)
    report = gather(store, experiment)
    run = report.students[0].runs[0]
    assert (run.state(), run.anchors) == ("searching, at anchor 6", (2, 6))
    assert report.students[0].score is None
    assert report.students[0].label == "kd greedy threshold=1.6 multi_stage"
    assert [search.complete for search in report.searches] == [False, False]
    for text in (page(report), to_markdown(report)):
        assert text.count("searching, at anchor 6") == 2  # multi_stage and one_stage


def test_seeds_that_agree_on_the_anchors_are_called_by_them(store, experiment):
    for search in experiment.searches():
        decide(store, search, 2, 8)
    labels = [group.label for group in gather(store, experiment).students]
    assert labels[:2] == [
        "kd greedy anchors=[2,8] multi_stage",
        "kd greedy anchors=[2,8] one_stage",
    ]


def test_the_matrix_has_a_row_per_stage_and_a_column_per_checkpoint(report):
    table = ratios(report.searches[0])
    assert table.shape == (2, 4)
    assert np.isnan(table[1, :2]).all()
    assert (table[0, 0], table[1, 2], table[1, 3]) == (1.0, 1.0, 1.25)


def charts(report):
    """The pictures of routes by the beginning of their titles."""
    return {chart.title.split(":")[0].split(" seed")[0]: chart for chart in route_charts(report)}


def test_a_map_says_its_ratios_its_threshold_and_where_it_went(report):
    chart = next(chart for chart in route_charts(report) if chart.title.startswith("Relative"))
    assert chart.title.endswith("seed=0 resnet8, threshold 1.6")
    assert "after 6 6: 1.00, 8: 1.25, next 8" in chart.picture.alt
    numbers = re.findall(r">([\d.]+|inf)</text>", chart.picture.svg)
    assert [number for number in numbers if "." in number].count("1.25") == 2
    frames = chart.picture.svg.count("fill: none; stroke: var(--paper)")
    assert frames == 2  # one for each decision


def test_infinity_is_a_number_of_the_map_and_null_in_json(store, experiment):
    for search in experiment.searches():
        decide(store, search, 2, 8, ratio=float("inf"))
    report = gather(store, experiment)
    svg = next(
        chart.picture.svg for chart in route_charts(report) if chart.title.startswith("Relative")
    )
    assert len(re.findall(">inf</text>", svg)) == 3
    assert not re.search(r'(d|x|y|transform)="[^"]*(nan|inf)', svg)
    assert to_json(report)["searches"][0]["decisions"][0]["ratios"]["8"] is None


@pytest.mark.parametrize("every", slow_but((1, 4, 8), (8,)))
def test_any_number_of_checkpoints_can_be_drawn(store, every):
    text = ROUTES.replace("epochs: 8}", "epochs: 64}").replace(
        "save_every: 2", f"save_every: {every}"
    )
    experiment = parse(text, "long")
    for search in experiment.searches():
        anchors = search.candidates()
        decide(store, search, anchors[0], anchors[3], anchors[-1])
    (chart, _) = [c for c in route_charts(gather(store, experiment)) if "Relative" in c.title]
    assert chart.wide == (every < 8)
    assert (">1.25</text>" in chart.picture.svg) == (every > 1)  # no room for 64 numbers


def test_legs_go_through_all_stages(report):
    found = {
        group.label: [legs(StudentRun.read(run.recipe)) for run in group.runs]
        for group in report.students
    }
    assert found["kd greedy threshold=1.6 multi_stage"] == [
        [(0, EPOCHS, 2), (EPOCHS, 2 * EPOCHS, 6), (2 * EPOCHS, 3 * EPOCHS, 8)],
        [(0, EPOCHS, 2), (EPOCHS, 2 * EPOCHS, 8)],
    ]
    assert found["kd anchors=[2,4,6,8] one_stage"][0] == [
        (0, 1, 2),
        (1, 2, 4),
        (2, 3, 6),
        (3, 4, 8),
    ]


def test_a_timeline_has_a_row_for_every_route(report):
    (chart,) = (chart for chart in route_charts(report) if "student epoch" in chart.title)
    assert "kd anchors=[2,4,6,8] one_stage 2 to epoch 1, 4 to epoch 2" in chart.picture.alt
    assert "multi_stage seed 1 2 to epoch 4, 8 to epoch 8" in chart.picture.alt


def test_without_routes_there_are_no_pictures_of_them(store):
    text = ROUTES.replace("select: greedy", "select: equal").replace("[greedy, equal]", "[equal]")
    text = text.replace("anchors: null", "anchors: 1")
    report = gather(store, parse(text, "plain"))
    assert [*route_charts(report)] == []
    assert "<h2>Routes</h2>" not in page(report)


@pytest.mark.slow
def test_a_search_leads_to_its_stages_and_its_recipe(report):
    written = page(report)
    for search in report.searches:
        assert written.count(f'<details id="{search.fingerprint}">') == 1
        for one in search.decisions:
            assert f'<a href="#{one.student}">' in written
            assert f'<details id="{one.student}">' in written


@pytest.mark.slow
def test_a_run_that_two_lines_share_has_one_anchor(store, experiment):
    for search in experiment.searches():
        decide(store, search, 2, 4, 6, 8)
    report = gather(store, experiment)
    fingerprints = [run.fingerprint for group in report.students for run in group.runs]
    assert len(fingerprints) == 2 * len(set(fingerprints))
    anchors = re.findall(r'\bid="([^"]*)"', page(report))
    assert len(anchors) == len(set(anchors))


def test_a_long_name_is_cut_in_a_picture(report):
    students = tuple(replace(group, label="k" * 200) for group in report.students)
    (chart,) = (c for c in route_charts(replace(report, students=students)) if "student" in c.title)
    texts = re.findall(r"<text[^>]*>(k+[^<]*)</text>", chart.picture.svg)
    assert {len(text) for text in texts} == {64}
