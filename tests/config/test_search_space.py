"""Search spaces of sweeps: labels, draws, refusals."""

import re

import pytest

from raykd.config.experiment import parse
from raykd.config.search_space import Space
from raykd.core.errors import ConfigError
from raykd.methods.kd import KD
from raykd.recipes import SearchedStudent, StudentRun

BASE = """
run:
  model: resnet8
  data: {name: digits, validation: 0.2}
  teacher: {model: resnet14, optim: {epochs: 20}, save_every: 5}
  method: kd
  optim: {epochs: 12, schedule: constant}
"""


def space(more: str) -> Space:
    found = parse(BASE + more, "space").space
    assert found is not None
    return found


def test_a_choice_is_named_by_what_a_person_calls_it():
    axes = """
grid:
  run.method: [kd, {name: skd, temperature: 2.0}, {combine: [crd, {name: kd, weight: 0.5}]}]
  run.optim.ema: [null, 0.99]
  run.seed: [0, 1]
  run.assistants: [[], [resnet14, resnet8]]
"""
    found = space(axes)
    assert [*found.choices("run.method")] == ["kd", "skd(temperature=2.0)", "crd + kd(weight=0.5)"]
    assert [*found.choices("run.optim.ema")] == ["none", 0.99]
    assert [*found.choices("run.seed")] == [0, 1]
    assert [*found.choices("run.assistants")] == ["[]", '["resnet14","resnet8"]']


def test_equal_labels_stay_apart():
    assert len(space("grid: {run.method: [kd, {name: kd}]}").choices("run.method")) == 2


def test_a_configuration_is_the_student_of_the_grid():
    more = """
grid:
  run.method: [kd, {name: skd, temperature: 2.0}]
  run.seed: [0, 3]
"""
    laid_out = parse(BASE + more, "grid").runs
    found = space(more)
    named = [
        found.student({"run.method": method, "run.seed": seed})
        for method in found.choices("run.method")
        for seed in (0, 3)
    ]
    assert tuple(named) == laid_out


def test_a_drawn_number_and_a_choice_go_to_their_places():
    found = space("""
search:
  run.optim.lr: {loguniform: [0.01, 0.1]}
  run.method: {choice: [kd, {name: dkd, alpha: 2.0}]}
  run.seed: {randint: [0, 5]}
""")
    run = found.student({"run.optim.lr": 0.07, "run.method": "kd", "run.seed": 4})
    assert isinstance(run, StudentRun)
    assert (run.optim.lr, run.method, run.seed) == (0.07, KD(), 4)


def test_a_route_that_is_still_to_be_found_can_be_varied():
    found = space("grid: {run.rco.select: [equal, greedy], run.rco.anchors: [1, 2]}")
    kinds = {
        (select, count): type(found.student({"run.rco.select": select, "run.rco.anchors": count}))
        for select in ("equal", "greedy")
        for count in (1, 2)
    }
    assert kinds == {
        ("equal", 1): StudentRun,
        ("equal", 2): StudentRun,
        ("greedy", 1): StudentRun,
        ("greedy", 2): SearchedStudent,
    }


WRONG = {
    "search: {run.optim.lr: {loguniform: [0, 1]}}": "goes from a smaller to a larger number",
    "search: {run.optim.lr: {uniform: [1, 0]}}": "experiment.search.run.optim.lr: uniform goes",
    "search: {run.optim.lr: {uniform: [0, 1], choice: [1]}}": "got uniform and choice",
    "search: {run.optim.lr: {}}": "got none",
    "search: {run.optim.lr: {unifrom: [0, 1]}}": "did you mean 'uniform'",
    "search: {scale.cpus: {uniform: [0, 1]}}": "a search varies keys of run",
    "grid: {run.seed: [0]}\nsearch: {run.seed: {randint: [0, 2]}}": "the grid varies run.seed",
    "grid: {run.method: [kd]}\nsearch: {run.method.temperature: {uniform: [1, 4]}}": (
        "the grid varies run.method already"
    ),
    "search: {run.optm.lr: {uniform: [0.1, 1]}}": "no such key; did you mean 'optim'",
    "search: {run.method: {choice: [kd, {name: dkdd}]}}": "did you mean 'dkd'",
    "sweep: {metric: validaton_top1}": "did you mean 'validation_top1'",
    "sweep: {metric: kl}": "less kl is better; set it to min",
    "sweep: {schduler: asha}": "experiment.sweep.schduler: no such key; did you mean 'scheduler'",
    "sweep: {scheduler: pbt}": "needs numbers to change",
    "search: {run.optim.lr: {uniform: [0, 1]}}\nsweep: {scheduler: pbt, generation_epochs: 5}": (
        "12 epochs are no whole number of generations of 5"
    ),
}


def test_a_wrong_space_is_refused_with_its_place():
    for more, message in WRONG.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            space(more)


def test_a_population_wants_a_constant_schedule():
    text = BASE.replace(", schedule: constant", "")
    more = "search: {run.optim.lr: {uniform: [0, 1]}}\nsweep: {scheduler: pbt}"
    with pytest.raises(ConfigError, match=r"set run\.optim\.schedule: constant"):
        parse(text + more, "space")


def test_an_override_can_change_a_draw():
    more = "search: {run.optim.lr: {uniform: [0, 1]}}"
    found = parse(BASE + more, "space", ["search.run.optim.lr={choice: [0.5]}", "sweep.samples=3"])
    assert found.space is not None
    assert [*found.space.choices("run.optim.lr")] == [0.5]
    assert found.space.sweep.samples == 3
    with pytest.raises(ConfigError, match="the search varies this key"):
        parse(BASE + more, "space", ["run.optim.lr=0.1"])
