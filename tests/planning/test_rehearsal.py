"""Ways of running an experiment: which are timed, and which of them is chosen."""

import pytest

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.planning import estimate, rehearsal
from raykd.planning.rehearsal import fastest, few_views, rehearse
from raykd.storage.store import Store
from tests.each import each

TEXT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 4, flip: true}}
  teacher: {model: resnet14, optim: {epochs: 2, batch: 32}}
  method: kd
  optim: {epochs: 48, batch: 32}
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """What is timed is timed for a moment: no test looks at the times themselves."""
    monkeypatch.setattr(estimate, "_MEASURE_SECONDS", 0.0)


def experiment_of(*overrides, path="mine.yaml"):
    return parse(TEXT, "mine", overrides, path)


def test_the_fastest_way_is_chosen_unless_one_that_changes_less_is_as_good():
    current = ("float32", False)
    costs = {current: 100.0, ("bfloat16", False): 60.0, ("bfloat16", True): 59.0}
    assert fastest(costs, current) == ("bfloat16", False)
    assert fastest(costs | {("bfloat16", True): 50.0}, current) == ("bfloat16", True)
    assert fastest(costs | {("bfloat16", False): 97.0}, current) == ("bfloat16", True)
    assert fastest({current: 100.0, ("bfloat16", False): 96.0}, current) == current
    assert fastest(dict.fromkeys(costs, float("inf")), current) == current


def test_a_student_that_reads_a_cache_alone_is_advised_a_quarter_of_its_epochs():
    assert few_views(experiment_of()) == {"run.views": 12}
    assert few_views(experiment_of("run.optim.epochs=240")) == {"run.views": 60}
    assert few_views(experiment_of("run.optim.epochs=16")) == {"run.views": 8}
    one_each = "grid={run.seed: [0, 1], run.views_by_seed: [true]}"
    assert few_views(experiment_of(one_each)) == {"run.views": 12}


@each(
    "override",
    [
        "run.views=all",  # as it was asked for
        "run.optim.epochs=8",  # no fewer
        "run.data.augment={flip: true}",  # two views there are
        "run.source=live",
        "run.method=label_only",
        "grid={run.seed: [0, 1]}",
        "grid={run.method: [kd, dkd]}",
        "search={run.optim.lr: {loguniform: [0.01, 0.1]}}",
    ],
)
def test_other_students_keep_their_views(override):
    assert few_views(experiment_of(override)) == {}


def test_every_network_is_timed_in_every_way_and_its_schedules_are_priced(tmp_path):
    said: list[str] = []
    experiment = resolve(experiment_of("grid={run.seed: [0, 1, 2]}"), Store(tmp_path))
    found = rehearse(experiment, Store(tmp_path), said.append)
    students = {(w.precision, w.batch) for w in found.ways if w.kind == "student"}
    assert {("float32", 32), ("bfloat16", 32)} <= students
    assert {batch for _, batch in students} == {16, 32, 64, 128}
    teachers = {(w.precision, w.batch) for w in found.ways if w.kind == "teacher"}
    assert teachers == {("float32", 32), ("bfloat16", 32)}
    answers = {(w.precision, w.batch) for w in found.ways if w.kind == "cache"}
    assert {batch for _, batch in answers} == {64, 128, 256, 512}
    assert all(way.images_per_second and way.seconds for way in found.ways)
    assert len(said) == len(found.ways)  # each once

    # Shared by three students: one pays the passes alone, each of three a third of them.
    everything, half, quarter, live = found.schedules
    assert [s.passes for s in found.schedules] == [48, 24, 12, 3 * 48]
    assert everything.students == 3
    step = 2 * half.seconds - everything.seconds  # without a teacher
    assert everything.shared_seconds - step == pytest.approx((everything.seconds - step) / 3)
    assert quarter.seconds < half.seconds < everything.seconds
    assert live.over_live == 1.0
    known = {"run.precision", "run.teacher.precision", "run.teacher_precision"}
    assert found.choices.keys() <= known | {"scale.teacher_batch"}


def test_precisions_that_the_students_vary_are_no_choice(tmp_path):
    varied = experiment_of("grid={run.precision: [float32, bfloat16]}")
    found = rehearse(resolve(varied, Store(tmp_path)), Store(tmp_path))
    assert "run.precision" not in found.choices


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compilation_is_timed_where_it_could_pay(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "_WORTH", 0.0)
    text = experiment_of("run.teacher.weights=null", "run.method=label_only")
    experiment = resolve(text, Store(tmp_path))
    found = rehearse(experiment, Store(tmp_path))
    compiled = [way for way in found.ways if way.compiled]
    assert {way.precision for way in compiled} == {"float32", "bfloat16"}
    assert all(way.compile_seconds > 0 for way in compiled)
    assert found.choices.get("scale.compile") is None  # some seconds of work
