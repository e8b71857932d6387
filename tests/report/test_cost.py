import pytest

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.outputs.manifest import Manifest, Part, Shard, write_manifest
from raykd.planning.plan import plan
from raykd.report import gather
from raykd.report.tables import cost_lines
from raykd.storage.store import read_json, write_json
from raykd.training.checkpointing import RESULT
from raykd.training.route_results import plannable
from tests.report.stored import DATA, EPOCHS, ROUTES, TEXT, finished, put, routed

ROWS = {"train": 100, "test": 30, "validation": 20}


def build(store, experiment):
    """Write the manifests of every cache of an experiment, and return its plan."""
    students, measured = plannable(store, experiment.runs)
    work = plan(students, caches=measured)
    for job in work.caches:
        rows = ROWS[job.run.split]
        shards = tuple(Shard(Part(view, 0, rows), 1000, "a") for view in job.views)
        write_manifest(store.path(job.run), Manifest(job.run.plain(), "w", rows, shards))
    return work


def shared(report):
    return {one.what.split()[-1]: (one.together, one.alone) for one in report.cost.shared}


def test_sharing_saves_what_students_alone_would_compute(store, experiment):
    finished(store, experiment)
    build(store, experiment)
    report = gather(store, experiment)
    # Without augmentation there is one view; nine students read it, and twelve the test images.
    assert report.cost.forwards == 100 + 30
    counts = shared(report)
    assert counts["forwards"] == (130, 9 * 100 + 12 * 30)
    assert counts["assistants"] == (1, 12)
    assert counts["preludes"] == (0, 0)
    text = dict(cost_lines(report))["teacher forwards"]
    assert text.startswith("130 where the finished students alone would have needed 1,260")
    assert text.endswith("1,130 saved (90 %)")


def test_only_finished_students_count(store, experiment):
    build(store, experiment)
    put(store, experiment.runs[3], 90.0)
    assert shared(gather(store, experiment))["forwards"] == (130, 130)


@pytest.mark.slow
def test_the_forwards_of_a_live_teacher_are_no_ones_but_the_student_s(store):
    text = TEXT.replace(DATA, "{name: digits, holdout: 0.2}")
    experiment = resolve(parse(text.replace("  optim:", "  source: live\n  optim:"), "live"), store)
    finished(store, experiment)
    build(store, experiment)
    train = 1797 - 359  # which are in no cache
    # The test images are still answered for once, from a cache.
    assert shared(gather(store, experiment))["forwards"] == (
        9 * EPOCHS * train + 30,
        9 * EPOCHS * train + 12 * 30,
    )


def test_images_that_are_not_in_the_store_count_nothing(store, experiment):
    finished(store, experiment)
    assert shared(gather(store, experiment))["forwards"] == (0, 0)


@pytest.mark.slow
def test_stages_and_searches_are_counted_once(store):
    experiment = parse(ROUTES, "routes")
    routed(store, experiment)
    work = build(store, experiment)
    counts = shared(gather(store, experiment))
    # Anchors 2, 4, 6 and 8 of one teacher: a view of training, test and validation images each.
    assert {job.run.split for job in work.caches} == set(ROWS)
    assert counts["forwards"][0] == 4 * sum(ROWS.values())
    assert counts["assistants"] == (1, 8)
    # Seed 0: 2, then 6, and 2, 4, 6; seed 1: 2, and 2, 4, 6. Greedy ones twice alone.
    assert counts["preludes"] == (4 + 3, 2 * 2 + 3 + 2 * 1 + 3)


@pytest.mark.slow
def test_assistants_are_teachers_that_are_trained(store):
    text = TEXT.replace("  optim:", "  assistants: [resnet14]\n  optim:")
    experiment = parse(text.replace("[label_only, kd,", "[kd,"), "chain")
    work = plan(experiment.runs)
    for run in (*work.teachers, *work.students):
        put(store, run, 90.0 + run.seed)
    report = gather(store, experiment)
    assert [group.label for group in report.teachers][:2] == ["teacher", "assistant kd"]
    assert {group.network for group in report.teachers[1:]} == {"resnet14"}
    assert len(report.students) == 3
    assert shared(report)["assistants"] == (1 + 3, 9 * 2)  # an assistant for each method


def test_hours_are_seconds_of_all_workers_by_hardware(store, experiment):
    finished(store, experiment)
    path = store.path(experiment.runs[0]) / RESULT
    result = read_json(path)
    write_json(path, result | {"hardware": "NVIDIA H200", "workers": 4, "seconds": 1800})
    report = gather(store, experiment)
    on_cpus = 8 + 4 * (8.0 + 9 + 10) - 8
    assert report.cost.hours == {
        "a <fast> processor (2 cores)": pytest.approx(on_cpus / 3600),
        "NVIDIA H200": pytest.approx(2.0),
    }
    said = {name: text for name, text in cost_lines(report) if name.endswith("hours")}
    assert said["GPU-hours"].startswith("2 of workers that train, on NVIDIA H200")
    assert "CPU-hours" in said
