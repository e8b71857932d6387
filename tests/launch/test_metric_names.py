"""Metrics, and the dashboards that draw them."""

import re

import pytest

from raykd.core.counters import Meter
from raykd.core.record import fingerprint
from raykd.launch.metric_names import COUNTERS, GAUGES, TrainingLabels, increments_of
from raykd.launch.prometheus import Exporter, Prometheus
from raykd.storage.store import Store
from tests.each import each
from tests.launch.dashboards import DASHBOARDS, EXPORTED, FOLDER, panels, queries
from tests.small import student_run, teacher_run

UNITS = ["short", "percent", "percentunit", "s", "bytes", "Bps", "ops"]


@each("name", DASHBOARDS)
def test_a_dashboard_is_whole(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"raykd-{name}" and dashboard["title"].startswith("raykd: ")
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables.pop("datasource")["query"] == "prometheus"
    assert "experiment" in variables
    source = {"type": "prometheus", "uid": "${datasource}"}
    for variable in variables.values():
        assert variable["datasource"] == source and variable["allValue"] == ".*"
        metric, label = re.fullmatch(
            r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"]
        ).groups()
        assert label == variable["name"] and label in EXPORTED[metric]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len({*ids})
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len({*cells}) and max(cells)[0] < 24  # no panel on top of another
    for panel in panels(dashboard):
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["type"] in ("stat", "timeseries") and panel["datasource"] == source
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or unit.startswith("suffix: ")
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(letters) == len({*letters})
        for target in panel["targets"]:
            assert target["datasource"] == source and target["legendFormat"]
            used = {*re.findall(r"\$\w+", target["expr"])} - {"$__rate_interval"}
            assert used <= {f"${each}" for each in variables}


def test_every_metric_is_drawn_and_queries_ask_for_no_other():
    drawn = {name for query in queries().values() for name in re.findall(r"ray_raykd_\w+", query)}
    assert drawn == EXPORTED.keys()


def test_every_metric_is_explained():
    text = "".join(path.read_text() for path in FOLDER.parent.glob("*.md"))
    assert not [name for name in (*GAUGES, *COUNTERS) if f"`{name}`" not in text]


def test_queries_know_the_tags_of_what_they_ask_for():
    for title, query in queries().items():
        for name, text in re.findall(r"(ray_raykd_\w+)\{(.*?)\}", query):
            asked = {*re.findall(r"(\w+)=~?\"", re.sub(r"!=", "=", text))}
            assert asked <= {*EXPORTED[name]}, title
        for tags in re.findall(r"by \((.*?)\) \(ray_raykd", query):
            name = re.search(rf"by \({re.escape(tags)}\) \((ray_raykd_\w+)", query).group(1)
            assert {*tags.split(", ")} <= {*EXPORTED[name]}, title


@pytest.mark.slow
def test_an_epoch_says_what_was_learnt(tmp_path):
    run = student_run(Store(tmp_path))
    metrics = {"epoch": 1, "loss": 3.0, "loss_label": 1.0, "loss_logits": 2.0, "lr": 0.1}
    metrics |= {"top1": 90.0, "validation_top1": 80.0, "agreement": 95.0, "counts": {"a": [1]}}
    shown = TrainingLabels(run, "small", None)
    tags = {"experiment": "small", "trial": fingerprint(run)[:8], "model": "resnet8"}
    tags = tuple((tags | {"method": "kd"}).items())
    assert shown.gauges(metrics) == {
        ("raykd_epochs_done", tags): 2.0,
        ("raykd_epochs", tags): 3.0,
        ("raykd_loss", (*tags, ("part", "all"))): 3.0,
        ("raykd_loss", (*tags, ("part", "label"))): 1.0,
        ("raykd_loss", (*tags, ("part", "logits"))): 2.0,
        ("raykd_top1", (*tags, ("images", "test"))): 90.0,
        ("raykd_top1", (*tags, ("images", "validation"))): 80.0,
        ("raykd_agreement", tags): 95.0,
        ("raykd_learning_rate", tags): 0.1,
    }
    assert TrainingLabels(run, "small", None, rank=1).gauges(metrics) == {}
    teacher = TrainingLabels(teacher_run(Store(tmp_path)), "small", "t1").key("raykd_epochs")
    assert dict(teacher[1]) == dict(tags) | {"trial": "t1", "method": "teacher"}


def test_speeds_and_counts_are_differences_of_two_moments(tmp_path):
    shown = TrainingLabels(student_run(Store(tmp_path)), "small", "t1", rank=3)
    before = Meter(steps=10, images=320, step_seconds=5.0, data_seconds=1.0, cache_hits=4)
    now = Meter(14, 448, 7.0, 1.5, cache_hits=9, cache_misses=1, cache_seconds=0.5)
    tags = (("experiment", "small"), ("trial", "t1"), ("rank", "3"))
    assert shown.speeds(before, now) == {
        ("raykd_images_per_second", tags): 128 / 3,
        ("raykd_step_seconds", tags): 0.5,
        ("raykd_data_wait_share", tags): 1 / 3,
    }
    assert shown.speeds(now, now) == {}
    own = (("experiment", "small"),)
    assert increments_of("small", before, now) == {
        ("raykd_images", own): 128,
        ("raykd_busy_seconds", own): 2.0,
        ("raykd_data_wait_seconds", own): 0.5,
        ("raykd_cache_wait_seconds", own): 0.5,
        ("raykd_cache_lookups", (*own, ("result", "hit"))): 5,
        ("raykd_cache_lookups", (*own, ("result", "miss"))): 1,
    }


def test_without_ray_nothing_is_shown_and_nothing_fails(tmp_path):
    meter, run = Meter(), student_run(Store(tmp_path))
    exporter = Exporter(meter)
    prometheus = Prometheus("small", exporter=exporter)
    prometheus.begin(run, [])
    meter.steps, meter.step_seconds = 1, 1.0
    prometheus.epoch(run, {"epoch": 0, "loss": 1.0})
    exporter.export()
    prometheus.end(run, None)
    prometheus.close()
    exporter.export()
