"""Carrying out a plan in this process, without Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from raykd.config.experiment import Experiment, load, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core.errors import CacheMismatch, NoRoom, WorkFailed
from raykd.launch import executor
from raykd.launch.executor import execute
from raykd.storage.store import Store, read_json, write_json
from raykd.tracking.console import Terminal
from tests.small import student_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def experiment(store, *methods, seeds=(0,), **scale):
    runs = [student_run(store, method, seed=seed) for method in methods for seed in seeds]
    return Experiment("small", tuple(runs), Scale(**scale))


QUIET = Terminal(quiet=True)


def test_everything_is_made_once_and_found_again(store):
    first = experiment(store, "kd")
    outcome = execute(first, store, QUIET, students=False)
    assert outcome.made == {"teachers": 1, "caches": 2, "preludes": 0, "students": 0}
    assert not store.has(first.runs[0])
    small = experiment(store, "label_only", "kd")
    outcome = execute(small, store, QUIET)
    assert outcome.made == {"teachers": 0, "caches": 0, "preludes": 0, "students": 2}
    assert all(store.has(run) for run in small.runs)
    again = execute(small, store, QUIET)
    assert again.made == {"teachers": 0, "caches": 0, "preludes": 0, "students": 0}
    assert again.reused == {"teachers": 1, "caches": 2, "preludes": 0, "students": 2}


@pytest.mark.slow
def test_a_cache_that_cannot_be_filled_stops_its_own_students_alone(store):
    good, bad = student_run(store, "kd"), student_run(store, "kd", views=1)
    label_only = student_run(store, "label_only")
    other = bad.teacher.model_copy(update={"seed": 9})
    bad = bad.model_copy(update={"teacher": other})
    execute(Experiment("small", (bad,), Scale(workers=0)), store, QUIET, students=False)
    manifest = store.path(bad.outputs_at(0)) / "manifest.json"
    value = read_json(manifest)
    write_json(manifest, value | {"recipe": value["recipe"] | {"anchor": 1}})
    small = Experiment("small", (bad, good, label_only), Scale(workers=0))
    with pytest.raises(CacheMismatch, match="anchor: expected 2, found 1"):
        execute(small, store, QUIET)
    assert [store.has(run) for run in small.runs] == [False, True, True]


@pytest.mark.slow
def test_a_student_that_fails_does_not_stop_the_others(store):
    good = student_run(store)
    bad = good.model_copy(update={"optim": good.optim.model_copy(update={"lr": 1e30}), "seed": 7})
    with pytest.raises(WorkFailed, match="not finite"):
        execute(Experiment("small", (bad, good), Scale()), store, QUIET)
    assert store.has(good)
    assert not store.has(bad)


@pytest.mark.slow
def test_students_that_fail_alike_keep_the_status_of_their_errors(store):
    teachers = [student_run(store).teacher.model_copy(update={"seed": seed}) for seed in (8, 9)]
    runs = tuple(student_run(store, teacher=teacher) for teacher in teachers)
    execute(Experiment("small", runs, Scale(workers=0)), store, QUIET, students=False)
    for run in runs:
        manifest = store.path(run.outputs_at(0)) / "manifest.json"
        value = read_json(manifest)
        write_json(manifest, value | {"recipe": value["recipe"] | {"anchor": 1}})
    with pytest.raises(CacheMismatch, match=r"(?s)anchor: expected 2.*\n.*anchor: expected 2"):
        execute(Experiment("small", runs, Scale(workers=0)), store, QUIET)
    worse = runs[0].optim.model_copy(update={"lr": 1e30})
    bad = student_run(store, "label_only", optim=worse)
    with pytest.raises(WorkFailed, match=r"(?s)anchor: expected 2.*not finite"):
        execute(Experiment("small", (runs[0], bad), Scale(workers=0)), store, QUIET)


def test_a_cache_that_does_not_fit_the_disk_is_refused_before_it_is_begun(store, monkeypatch):
    small = experiment(store, "kd")
    monkeypatch.setattr(executor, "needed_bytes", lambda run, rows: 10**18)
    with pytest.raises(NoRoom, match=r"need .* GB, .* GB are free; lower run.views"):
        execute(small, store, QUIET)


@pytest.mark.slow
def test_a_run_without_workers_never_imports_ray(tmp_path):
    script = (
        "import sys; from raykd.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'ray' not in sys.modules"
    )
    words = ["run", str(ROOT / "experiments/quickstart.yaml"), "--store", str(tmp_path)]
    words += ["scale.workers=0", "scale.teacher_workers=0", "scale.rules=[]"]
    words += ["grid.run.method=[kd]", "grid.run.seed=[0]"]
    words += ["run.optim.epochs=2", "run.teacher.optim.epochs=1"]
    words = [sys.executable, "-c", script, *words]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kd" in done.stdout


def test_the_scale_decides_how_many_workers_a_student_gets():
    rules = "scale.rules=[{match: {run.method.name: skd, run.seed: 0}, workers: 2}]"
    quickstart = load(ROOT / "experiments/quickstart.yaml", [rules, "scale.teacher_workers=2"])
    counts = [quickstart.workers(run) for run in quickstart.runs]
    assert sorted(counts) == [1] * 14 + [2]
    assert quickstart.teacher_workers(quickstart.runs[0].teacher) == 2
    wide = next(run for run in quickstart.runs if quickstart.workers(run) == 2)
    assert (wide.method.name, wide.seed) == ("spherical_kd", 0)


@pytest.mark.slow
def test_a_teacher_from_a_weights_file_is_a_route_of_one(store, tmp_path):
    first = experiment(store, "kd")
    execute(first, store, QUIET)
    teacher = first.runs[0].teacher
    file = store.path(teacher) / "weights-0002.safetensors"
    text = f"""
run:
  model: resnet8
  data: {{name: digits, holdout: 0.1, limit: 96, augment: {{pad: 1}}}}
  teacher: {{model: resnet8, weights: {file}}}
  method: kd
  optim: {{epochs: 2, batch: 32}}
"""
    given = resolve(parse(text, "given"), store)
    assert given.runs[0].teacher.anchors() == (0,)
    assert given.runs[0].teacher.weights.startswith("sha256:")
    execute(given, store, QUIET)
    assert store.has(given.runs[0])
