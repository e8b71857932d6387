"""Experiment files: what they may say, what it becomes, and what is said of mistakes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from raykd import models
from raykd.config.experiment import Experiment, Where, load, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.config.schema import schema as schema_of
from raykd.config.search_space import Space
from raykd.core.errors import ConfigError, DataError
from raykd.core.record import fingerprint
from raykd.data.recipe import Data
from raykd.methods import METHODS
from raykd.methods.base import Ramp
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.skd import SKD
from raykd.storage.store import Store

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "experiments").rglob("*.yaml"))

PLAIN = """
run:
  model: resnet8
  data: {name: digits, augment: {pad: 2}}
"""
TAUGHT = PLAIN + "  teacher: {model: resnet8x4, optim: {epochs: 30}}\n"


def students(text: str, *overrides: str) -> tuple[Any, ...]:
    return parse(text, "test", overrides).runs


def student(text: str, *overrides: str) -> Any:
    (run,) = students(text, *overrides)
    return run


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, "test", overrides)
    return str(error.value)


# What a file says


def test_a_file_with_a_run_alone_is_one_student_of_defaults():
    experiment = parse(PLAIN, "name")
    space = Space({"model": "resnet8", "data": {"name": "digits", "augment": {"pad": 2}}}, {})
    assert experiment == Experiment("name", experiment.runs, Scale(), Where(), space)
    run = student(PLAIN)
    assert (run.model, run.method, run.teacher) == ("resnet8", LabelOnly(), None)
    assert run.data.augment.pad == 2


def test_a_teacher_learns_from_what_the_student_learns_from():
    run = student(TAUGHT + "  method: kd\n")
    assert run.teacher.data == run.data
    # Also where an override or a grid says what that is.
    assert student(TAUGHT, "run.data.limit=50").teacher.data.limit == 50
    for run in students(TAUGHT + "grid: {run.data.seed: [1, 2]}\n"):
        assert run.teacher.data == run.data


def test_a_teacher_may_have_data_of_its_own():
    own = "  teacher: {model: resnet8x4, data: {name: digits}}\n"
    run = student(PLAIN + own, "run.data.limit=50")
    assert run.teacher.data == Data(name="digits")
    assert run.data.limit == 50


def test_a_method_s_name_stands_for_the_method_with_its_defaults():
    assert student(TAUGHT + "  method: skd\n").method == SKD()
    assert student(TAUGHT + "  method: {name: skd}\n").method == SKD()
    assert student(TAUGHT, "run.method=kd").method == KD()


def test_numbers_with_an_exponent_are_numbers():
    numbers = {"1e-4": 1e-4, "1E-4": 1e-4, "1.e-4": 1e-4, "+2.5e-1": 0.25, ".5e0": 0.5, "1": 1.0}
    for text, value in numbers.items():
        assert student(PLAIN + f"  optim: {{lr: {text}}}\n").optim.lr == value
        assert student(PLAIN, f"run.optim.lr={text}").optim.lr == value
    runs = students(PLAIN + f"grid: {{run.optim.lr: [{', '.join(numbers)}]}}\n")
    assert [run.optim.lr for run in runs] == [*numbers.values()]


def test_a_quoted_digest_stays_text_though_it_looks_like_a_number():
    digest = "12345678901234e56789"
    assert student(PLAIN, f"run.data.digest='{digest}'").data.digest == digest


def test_schedules_routes_and_sizes_are_written_as_lists():
    run = student(
        TAUGHT
        + "  method: {name: kd, weight: [[0, 0.9], [60, 0.5]]}\n"
        + "  route: {anchors: [10, 30], starts: [0, 80]}\n"
    )
    assert run.method.weight == ((0, 0.9), (60, 0.5))
    assert (run.route.anchors, run.route.starts) == ((10, 30), (0, 80))


def test_a_ramp_is_written_with_its_epochs_and_values():
    text = TAUGHT + "  method: {name: kd, weight: {ramp: [0, 20, 0, 0.9]}}\n"
    assert student(text).method.weight == Ramp(ramp=(0, 20, 0.0, 0.9))
    jsonschema.validate(yaml.safe_load(text), schema_of())
    run = student(text, "run.method.weight.kind=sigmoid", "run.label_weight={ramp: [5, 9, 1, 0]}")
    assert run.method.weight.kind == "sigmoid"
    assert run.label_weight_at(7) == 0.5
    grid = "grid: {run.method.weight: [0.9, {ramp: [0, 20, 0, 0.9]}]}\n"
    assert len({fingerprint(run) for run in students(TAUGHT + "  method: kd\n" + grid)}) == 2


def test_a_part_may_be_left_empty():
    assert len(students(PLAIN + "grid:\nscale:\ndata:\n")) == 1
    assert len(students(PLAIN + "grid:\n", "grid.run.seed=[0, 1]")) == 2


def test_anchors_and_merges_of_yaml_work_and_own_keys_win():
    text = """
run:
  model: resnet8
  data: {name: digits}
  optim: &optim {epochs: 30, lr: 0.1}
  teacher:
    model: resnet8x4
    optim:
      <<: *optim
      epochs: 90
"""
    run = student(text)
    assert (run.teacher.optim.epochs, run.teacher.optim.lr) == (90, 0.1)


def test_an_experiment_is_named_after_its_file(tmp_path):
    (tmp_path / "first_try.yaml").write_text(PLAIN)
    assert load(tmp_path / "first_try.yaml") == parse(PLAIN, "first_try")
    assert load(tmp_path / "first_try.yaml", ["run.seed=4"]).runs[0].seed == 4


# Overrides


def test_an_override_sets_one_key_and_makes_what_is_missing_on_the_way():
    before, after = student(TAUGHT), student(TAUGHT, "run.optim.epochs=7")
    assert after == before.model_copy(update={"optim": after.optim})
    assert after.optim.epochs == 7
    assert student(TAUGHT, "run.teacher.optim.epochs=9").teacher.optim.epochs == 9
    experiment = parse(PLAIN, "x", ["scale.workers=3", "data.path=/images"])
    assert (experiment.scale.workers, experiment.where.path) == (3, "/images")


def test_an_override_s_value_is_yaml_and_the_last_one_counts():
    assert student(PLAIN, "run.optim.milestones=[100, 150]").optim.milestones == (100, 150)
    assert student(PLAIN, "run.optim={epochs: 3}").optim.epochs == 3
    assert student(TAUGHT, "run.teacher=null").teacher is None
    assert student(PLAIN, "run.optim.clip=").optim.clip is None
    assert student(PLAIN, "run.seed=1", "run.seed=2").seed == 2


def test_an_override_reaches_into_a_method_that_is_a_name():
    text = TAUGHT + "  method: kd\n"
    assert student(text, "run.method.temperature=2.0").method == KD(temperature=2.0)


def test_a_whole_part_can_be_overridden():
    assert len(students(PLAIN, "grid={run.seed: [0, 1, 2]}")) == 3
    assert student(PLAIN, "run={model: resnet14, data: {name: digits}}").model == "resnet14"


def test_overrides_of_a_grid_replace_one_axis():
    text = PLAIN + "grid: {run.seed: [0, 1], run.model: [resnet8, resnet14]}\n"
    runs = students(text, "grid.run.seed=[5]")
    assert [(run.seed, run.model) for run in runs] == [(5, "resnet8"), (5, "resnet14")]


# Grids


def test_a_grid_is_every_combination_with_the_last_axis_running_fastest():
    runs = students(TAUGHT + "grid: {run.method: [kd, skd], run.seed: [0, 1, 2]}\n")
    expected = [
        ("kd", 0),
        ("kd", 1),
        ("kd", 2),
        ("spherical_kd", 0),
        ("spherical_kd", 1),
        ("spherical_kd", 2),
    ]
    assert [(run.method.name, run.seed) for run in runs] == expected


def test_a_sum_of_methods_is_written_as_a_list_of_their_names():
    sums = student(TAUGHT + "  method: {combine: [crd, kd]}\n").method
    assert sums == METHODS["combine"](combine=(METHODS["crd"](), KD(weight=1.0)))
    text = TAUGHT + "  method: {combine: [{name: rkd, weight: 2.0}, {name: kd, weight: 0.3}]}\n"
    assert [part.weight for part in student(text).method.combine] == [2.0, 0.3]
    for parts, said in {
        "[kd]": "a sum has two methods or more",
        "[kd, simkd]": "'simkd' cannot be part of a sum",
        "[ab, ft]": "keep one",
        "[kd, kdd]": "did you mean 'kd'?",
    }.items():
        with pytest.raises(ConfigError) as error:
            student(TAUGHT + f"  method: {{combine: {parts}}}\n")
        assert said in str(error.value)


def test_a_teacher_without_data_of_its_own_learns_from_samples_that_are_not_mixed():
    text = TAUGHT.replace("augment: {", "augment: {mix: {kind: mixup}, ")
    assert text != TAUGHT
    run = student(text + "  method: kd\n")
    assert run.data.augment.mix is not None
    assert run.teacher.data == run.data.model_copy(update={"augment": run.data.augment.unmixed()})


def test_a_method_that_mixes_wants_samples_that_are_not_mixed():
    text = TAUGHT.replace("augment: {", "augment: {mix: {kind: mixup}, ")
    with pytest.raises(
        ConfigError, match=r"mixes the samples itself; leave run\.data\.augment\.mix"
    ):
        student(text + "  method: stkd\n")


def test_a_method_that_reads_pre_activations_wants_networks_that_say_them():
    for method in ("ofd", "ab", "reviewkd"):
        text = TAUGHT.replace("model: resnet8", "model: torchvision/resnet18", 1)
        with pytest.raises(ConfigError, match="before their last ReLU, which torchvision/resnet18"):
            student(text + f"  method: {method}\n")


def test_a_grid_may_vary_a_method_s_name_and_keeps_nothing_of_the_last_combination():
    text = TAUGHT + "  method: {name: kd, temperature: 2.0}\n"
    runs = students(text + "grid: {run.method.name: [kd, skd]}\n")
    assert [run.method for run in runs] == [KD(temperature=2.0), SKD(temperature=2.0)]
    values = "[{name: kd, temperature: 9.0}, skd]"
    runs = students(text + f"grid: {{run.method: {values}, run.optim.lr: [0.1, 0.2]}}\n")
    assert [run.method for run in runs] == [KD(temperature=9.0)] * 2 + [SKD()] * 2


def test_a_grid_reaches_into_the_teacher():
    runs = students(TAUGHT + "grid: {run.teacher.seed: [0, 1]}\n")
    assert [run.teacher.seed for run in runs] == [0, 1]


# Mistakes

YAML_LIST = (
    "experiment: expected the keys data, run, grid, search, sweep, scale, plugins, published"
)
NO_RUN = "experiment.run: this key must be given, with a model and its data"
MISTAKES = {
    # mistakes of the file
    "nothing": ("", YAML_LIST),
    "a list": ("[1, 2]", YAML_LIST),
    "no run": ("scale: {workers: 1}", NO_RUN),
    "a run that is no mapping": ("run: resnet8", NO_RUN),
    "an unknown part": ("runs: {}", "experiment.runs: no such key; did you mean 'run'?"),
    "a part like no other": (
        PLAIN + "zzz: 1",
        "experiment.zzz: no such key; there are: data, run, grid, search, sweep, scale, plugins, "
        "published",
    ),
    "a key given twice": (
        PLAIN + "  model: resnet14\n",
        "experiment, line 5: 'model' is given twice",
    ),
    "a date": (
        PLAIN + "  seed: 2026-01-01\n",
        "experiment.run: Object of type date is not JSON serializable; "
        "quote the value, or write a plain number",
    ),
    # mistakes of the run
    "missing keys": (
        "run: {seed: 1}",
        "experiment.run.model: this key must be given\nexperiment.run.data: this key must be given",
    ),
    "an unknown key": (
        PLAIN + "  metod: kd\n",
        "experiment.run.metod: no such key; did you mean 'method'?",
    ),
    "a key like no other": (
        TAUGHT + "  route: {anchors: [10], zoom: 2}\n",
        "experiment.run.route.zoom: no such key; there are: anchors, starts",
    ),
    "an unknown network": (
        "run: {model: resnt20, data: {name: digits}}",
        "experiment.run.model: no network is called 'resnt20'; did you mean 'resnet20'?",
    ),
    "an unknown dataset": (
        "run: {model: resnet8, data: {name: cifar}}",
        "experiment.run.data.name: no dataset is called 'cifar'; did you mean 'cifar10'?",
    ),
    "an unknown key of a method": (
        TAUGHT + "  method: {name: kd, temprature: 2.0}\n",
        "experiment.run.method.temprature: no such key; did you mean 'temperature'?",
    ),
    "a key of another method": (
        TAUGHT + "  method: {name: kd, radius: 2.0}\n",
        "experiment.run.method.radius: no such key; there are: name, target, temperature, weight",
    ),
    "text for a number": (
        PLAIN + "  seed: '3'\n",
        "experiment.run.seed: input should be a valid integer, got '3'",
    ),
    "a negative number": (
        PLAIN + "  optim: {lr: -0.1}\n",
        "experiment.run.optim.lr: input should be greater than 0, got -0.1",
    ),
    "infinity": (
        PLAIN + "  optim: {lr: .inf}\n",
        "experiment.run.optim.lr: input should be a finite number, got inf",
    ),
    "an unknown choice": (
        PLAIN + "  source: disk\n",
        "experiment.run.source: input should be 'auto', 'cache' or 'live', got 'disk'",
    ),
    "a name for a mapping": (
        "run: {model: resnet8, data: digits}",
        "experiment.run.data: expected keys and values ({key: value}), got 'digits'",
    ),
    "a name for a teacher": (
        PLAIN + "  teacher: resnet20\n",
        "experiment.run.teacher: expected keys and values ({key: value}), got 'resnet20'",
    ),
    "two mistakes": (
        "run: {model: resnet8, data: {name: digits, limits: 4}, sed: 1}",
        "experiment.run.data.limits: no such key; did you mean 'limit'?\n"
        "experiment.run.sed: no such key; did you mean 'seed'?",
    ),
    # mistakes of values that do not fit each other
    "a method without a teacher": (
        PLAIN + "  method: kd\n",
        "experiment.run: method 'kd' needs a teacher; add run.teacher",
    ),
    "a route without a teacher": (
        PLAIN + "  route: {anchors: [1]}\n",
        "experiment.run: a route leads through a teacher's epochs; add run.teacher",
    ),
    "an anchor beyond the teacher": (
        TAUGHT + "  route: {anchors: [300]}\n",
        "experiment.run: anchor 300 lies beyond the teacher's 30 epochs",
    ),
    "an anchor that is not saved": (
        TAUGHT + "  route: {anchors: [15]}\n",
        "experiment.run: anchor 15 is not among the teacher's saved epochs [10, 20, 30]; "
        "choose teacher.save_every so that it is",
    ),
    "anchors without starts": (
        TAUGHT + "  route: {anchors: [10, 30]}\n",
        "experiment.run.route: 2 anchors need as many starts, got 1",
    ),
    "a weight of the only loss": (
        PLAIN + "  label_weight: 0.5\n",
        "experiment.run: label_weight scales the only loss of method 'label_only'; leave it out, "
        "or give the weight with the method that it is for",
    ),
    "a schedule that starts late": (
        TAUGHT + "  method: {name: kd, weight: [[5, 0.9]]}\n",
        "experiment.run.method.weight: the epochs of a schedule start at 0 and rise; got [5]",
    ),
    "a weight that is a word": (
        TAUGHT + "  method: {name: kd, weight: high}\n",
        "experiment.run.method.weight: input should be a valid number, got 'high'",
    ),
    "a ramp of three numbers": (
        TAUGHT + "  method: {name: kd, weight: {ramp: [0, 20, 1.0]}}\n",
        "experiment.run.method.weight.ramp.3: this key must be given",
    ),
    "a ramp that falls back": (
        TAUGHT + "  label_weight: {ramp: [20, 0, 0, 1]}\n",
        "experiment.run.label_weight: a ramp is [first epoch, last epoch, value before, value "
        "after], and its epochs rise; got [20, 0, 0.0, 1.0]",
    ),
    "a late milestone": (
        PLAIN + "  optim: {epochs: 10, milestones: [5, 20]}\n",
        "experiment.run.optim: milestone 20 lies beyond the 10 epochs; "
        "leave milestones out to scale them with the epochs",
    ),
    "more of a class than a batch has": (
        PLAIN + "  optim: {batch: 8, per_class: 9}\n",
        "experiment.run.optim: per_class: expected at most the batch of 8, got 9",
    ),
    "classes without labels": (
        PLAIN.replace("data: {", "data: {labels: none, ", 1)
        + "  teacher: {model: torchvision/resnet18, weights: DEFAULT}\n  task: features\n"
        "  method: feature_distillation\n  optim: {per_class: 2}\n",
        "experiment.run: optim.per_class puts samples of one class together, and data.labels is "
        "none; leave it out",
    ),
    "no views": (
        PLAIN + "  views: 0\n",
        "experiment.run: views: 0 is not a number of views; use 1 or more",
    ),
    # mistakes of the grid
    "a grid that is a list": (
        PLAIN + "grid: [1]\n",
        "experiment.grid: expected keys of run, each with a list of values",
    ),
    "an axis outside run": (
        PLAIN + "grid: {scale.workers: [1, 2]}\n",
        "experiment.grid.scale.workers: a grid varies keys of run, such as run.seed",
    ),
    "an axis that is a number": (
        PLAIN + "grid: {1: [2]}\n",
        "experiment.grid.1: a grid varies keys of run, such as run.seed",
    ),
    "an axis of one value": (
        PLAIN + "grid: {run.seed: 3}\n",
        "experiment.grid.run.seed: expected a list of values, got 3",
    ),
    "an axis of none": (
        PLAIN + "grid: {run.seed: []}\n",
        "experiment.grid.run.seed: expected a list of values, got []",
    ),
    "an axis that does not exist": (
        PLAIN + "grid: {run.sed: [1]}\n",
        "experiment.run.sed: no such key; did you mean 'seed'?",
    ),
    "an axis inside a number": (
        PLAIN + "  seed: 1\ngrid: {run.seed.deep: [1]}\n",
        "run.seed.deep: 'seed' is 1, which has no keys",
    ),
    # mistakes of data and scale
    "an unknown key of data": (
        PLAIN + "data: {paht: /x}\n",
        "experiment.data.paht: no such key; did you mean 'path'?",
    ),
    "an unknown key of scale": (
        PLAIN + "scale: {worker: 2}\n",
        "experiment.scale.worker: no such key; did you mean 'workers'?",
    ),
    "fewer than no workers": (
        PLAIN + "scale: {workers: -1}\n",
        "experiment.scale.workers: input should be greater than or equal to 0, got -1",
    ),
    "workers from more to fewer": (
        PLAIN + "scale: {workers: [4, 2]}\n",
        "experiment.scale: workers: expected a number, or [least, most] with 1 <= least <= most; "
        "got [4, 2]",
    ),
    "a weight held in no way": (
        PLAIN + "scale: {shard: zero}\n",
        "experiment.scale.shard: input should be 'ddp' or 'fsdp', got 'zero'",
    ),
    "graphs of steps in parts": (
        PLAIN + "scale: {compile: reduce-overhead, accumulate: 2}\n",
        "experiment.scale: compile: CUDA graphs lose the gradients of all parts but one; expected "
        "true beside accumulate above 1, got 'reduce-overhead'",
    ),
    "a rule that is not whole": (
        PLAIN + "scale: {rules: [{match: {run.seed: 1}}]}\n",
        "experiment.scale.rules.0.workers: this key must be given",
    ),
    "a rule for no key of any student": (
        PLAIN + "scale: {rules: [{match: {run.sed: 1}, workers: 2}]}\n",
        "experiment.scale.rules: run.sed: no student has such a key",
    ),
}


def test_a_mistake_is_named_with_its_place_and_its_remedy():
    messages = {what: refusal(text) for what, (text, _) in MISTAKES.items()}
    assert messages == {what: message for what, (_, message) in MISTAKES.items()}


def test_the_base_of_spot_adaptive_distillation_has_its_own_defaults():
    def method(text: str) -> Any:
        return student(TAUGHT + f"  method: {text}\n").method

    assert method("{name: sakd, base: at}").base == METHODS["at"]()
    assert method("{name: sakd, base: fitnet}").base.weight == 1.0
    assert method("{name: sakd, base: {name: fitnet, weight: 5.0}}").base.weight == 5.0
    assert method("fitnet").weight == 100.0
    both = method("{name: sakd, base: {combine: [crd, kd]}}").base
    assert both == method("{combine: [crd, kd]}")
    parts = method("{name: sakd, base: {combine: [fitnet, kd]}}").base.combine
    assert [part.weight for part in parts] == [1.0, 1.0]


METHOD_MISTAKES = {
    "{name: sakd, base: ab}": "experiment.run.method: base: 'ab' reads nothing of the teacher",
    "{name: sakd, base: simkd}": "experiment.run.method: base: 'simkd' leaves the student's",
    "{name: sakd, base: jacobian}": "experiment.run.method: base: 'jacobian' differentiates",
    "{name: sakd, base: att}": "experiment.run.method.base.name: no method is called 'att'; did",
    "{name: sakd, base: sakd}": "experiment.run.method.base: 'sakd' cannot stand within this",
    "{combine: [sakd, kd]}": "experiment.run.method.combine.0: 'sakd' cannot stand within",
    "skdd": "experiment.run.method.name: no method is called 'skdd'; did you mean 'skd'?",
    "{temperature: 2.0}": "experiment.run.method.name: this key must be given; there are: ",
    "{name: 3}": "experiment.run.method.name: no method is called '3'; there are: ",
    "3": "experiment.run.method: expected keys and values ({key: value}), got 3",
}


def test_a_mistake_in_a_method_is_told_with_the_methods_that_there_are():
    for text, beginning in METHOD_MISTAKES.items():
        message = refusal(TAUGHT + f"  method: {text}\n")
        assert message.startswith(beginning)
        assert not message.endswith("there are: ")
        assert "label_only, kd" in message or "there are" not in message


def test_text_that_is_no_yaml_is_refused_with_its_place():
    message = refusal("run: {model: resnet8")
    assert message.startswith("experiment, line 1: not YAML (")


OVERRIDES = {
    "run.seed": "'run.seed': expected key=value, such as run.seed=3",
    "=3": "'=3': expected key=value, such as run.seed=3",
    "seed=3": "seed: no such key; did you mean 'sweep'?",
    "rum.seed=3": "rum.seed: no such key; did you mean 'run'?",
    "run.sed=3": "experiment.run.sed: no such key; did you mean 'seed'?",
    "run.seed=": "experiment.run.seed: input should be a valid integer, got None",
    "run.model.depth=8": "run.model.depth: 'model' is 'resnet8', which has no keys",
    "scale.workers=two": "experiment.scale.workers: input should be a valid integer, got 'two'",
    "run.seed=[1": "run.seed, line 1: not YAML (",
}


def test_a_mistake_in_an_override_is_named():
    for override, beginning in OVERRIDES.items():
        assert refusal(PLAIN, override).startswith(beginning)


def test_an_override_of_what_the_grid_varies_is_refused():
    for axis, key in (("run.seed", "run.seed"), ("run.optim", "run.optim.lr")):
        message = refusal(PLAIN + f"grid: {{{axis}: [1]}}\n", f"{key}=1")
        what = "this key" if key == axis else f"all of {axis}"
        assert message == f"{key}: the grid varies {what}; override grid.{axis}=[...] instead"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe\0")
    with pytest.raises(ConfigError, match=r"picture\.yaml: is not text, and so no experiment file"):
        load(tmp_path / "picture.yaml")


# Scale


def test_the_first_rule_whose_every_value_matches_gives_the_workers():
    experiment = parse(
        TAUGHT
        + """
grid:
  run.method: [label_only, kd, skd]
  run.seed: [0, 1]
scale:
  workers: 1
  rules:
    - {match: {run.method.name: skd, run.seed: 1}, workers: 4}
    - {match: {run.method.name: skd}, workers: 3}
    - {match: {run.seed: 1, run.teacher.model: resnet8x4}, workers: 2}
""",
        "x",
    )
    found = {(run.method.name, run.seed): experiment.workers(run) for run in experiment.runs}
    assert found == {
        ("label_only", 0): 1,
        ("label_only", 1): 2,
        ("kd", 0): 1,
        ("kd", 1): 2,
        ("spherical_kd", 0): 3,
        ("spherical_kd", 1): 4,
    }


def test_a_rule_may_name_a_key_that_only_some_students_have():
    rules = "scale: {rules: [{match: {run.method.radius: null}, workers: 2}]}\n"
    experiment = parse(TAUGHT + "grid: {run.method: [kd, skd]}\n" + rules, "x")
    assert experiment.workers(experiment.runs[1]) == 2


def test_a_teacher_has_as_many_workers_as_its_students_unless_said_otherwise():
    def workers(*overrides: str) -> int:
        experiment = parse(TAUGHT, "x", overrides)
        return experiment.teacher_workers(experiment.runs[0].teacher)

    assert workers() == 0
    assert workers("scale.workers=2") == 2
    assert workers("scale.workers=2", "scale.teacher_workers=0") == 0
    assert workers("scale.workers=2", "scale.teacher_workers=3") == 3
    # Weights that are there already are work for one; those that are trained on are not.
    given = ("scale.workers=2", "run.teacher.weights=teacher.pt")
    assert workers(*given, "run.teacher.fine_tune=false") == 1
    assert workers(*given) == 2


def test_scale_and_data_change_no_fingerprint():
    spread = ["scale.workers=8", "scale.gpus=0.5", "data.path=/elsewhere"]
    assert fingerprint(student(TAUGHT, *spread)) == fingerprint(student(TAUGHT))


# What only files can tell


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images each of two classes."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


FOLDER = """
run:
  model: resnet8
  data: {name: folder}
  teacher: {model: resnet8x4, data: {name: folder, augment: {flip: true}}}
  method: kd
grid: {run.seed: [0, 1]}
"""


def test_resolving_fills_in_digest_classes_size_and_normalisation(store, photos):
    told: list[str] = []
    experiment = parse(FOLDER, "x", [f"data.path={photos}"])
    resolved = resolve(experiment, store, told.append)
    for run in resolved.runs:
        for data in (run.data, run.teacher.data):
            assert (data.classes, data.size) == (2, (8, 8))
            assert len(data.digest) == 20 and data.mean and data.std
    assert [run.seed for run in resolved.runs] == [0, 1]
    assert told[0] == f"reading the images of 'folder' from {photos}"
    assert told[1].startswith("writing 20 decoded images, 0.00 MB, into ")
    assert told[2].startswith("2 classes: ")
    assert len(told) == 3
    assert resolve(resolved, store) == resolved


def test_resolved_recipes_do_not_depend_on_where_the_images_are(store, photos, tmp_path):
    one = resolve(parse(FOLDER, "x", [f"data.path={photos}"]), store)
    moved = photos.rename(tmp_path / "moved")
    two = resolve(parse(FOLDER, "x", [f"data.path={moved}"]), Store(tmp_path / "other"))
    assert [fingerprint(run) for run in one.runs] == [fingerprint(run) for run in two.runs]


def test_changed_files_do_not_pass_for_the_images_of_a_pinned_digest(store, photos, tmp_path):
    path = f"data.path={photos}"
    digest = resolve(parse(FOLDER, "x", [path]), store).runs[0].data.digest
    pinned = parse(FOLDER, "x", [path, f"run.data.digest='{digest}'"])
    (photos / "cat" / "0.png").unlink()
    # This store still has the images that are meant; another one has none but the new ones.
    assert resolve(pinned, store).runs[0].data.digest == digest
    with pytest.raises(DataError, match=f"run.data.digest: expected {digest}, but the files have"):
        resolve(pinned, Store(tmp_path / "other"))


def test_images_that_are_nowhere_are_asked_for(store, tmp_path):
    with pytest.raises(DataError, match=r"lies in files; say where: data\.path=PATH"):
        resolve(parse(FOLDER, "x"), store)
    with pytest.raises(DataError, match="there is no such file or folder"):
        resolve(parse(FOLDER, "x", [f"data.path={tmp_path / 'none'}"]), store)


def test_a_teacher_of_other_classes_has_outputs_of_its_own(store, photos):
    text = FOLDER.replace("{name: folder, aug", "{name: digits, aug")
    teacher = resolve(parse(text, "x", [f"data.path={photos}"]), store).runs[0].teacher
    assert (teacher.outputs, teacher.classes, teacher.answers_classes) == (10, None, False)
    mapped = [f"data.path={photos}", "run.teacher.classes=[3, [5, 8]]"]
    teacher = resolve(parse(text, "x", mapped), store).runs[0].teacher
    assert (teacher.outputs, teacher.groups(), teacher.answers_classes) == (
        None,
        ((3,), (5, 8)),
        True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_weights_is_copied_into_the_store_and_named_by_its_digest(
    store, tmp_path, suffix
):
    teacher = models.build("resnet8x4", 10).network.state_dict()
    safetensors.torch.save_file(teacher, tmp_path / "x.safetensors")
    torch.save(teacher, tmp_path / "x.pt")
    saved = "x.safetensors" if suffix == ".safetensors" else "x.pt"
    content = (tmp_path / saved).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    runs = []
    for name in ("one", "two"):
        (tmp_path / f"{name}{suffix}").write_bytes(content)
        experiment = parse(TAUGHT, "x", [f"run.teacher.weights={tmp_path / name}{suffix}"])
        runs += resolve(experiment, store).runs
        (tmp_path / f"{name}{suffix}").unlink()
    assert runs[0] == runs[1]
    assert runs[0].teacher.weights == f"sha256:{digest}{suffix}"
    assert (store.root / "weights" / f"{digest}{suffix}").read_bytes() == content
    # A resolved recipe needs the file no more.
    again = parse(TAUGHT, "x", [f"run.teacher.weights={runs[0].teacher.weights}"])
    assert resolve(again, store).runs[0].teacher == runs[0].teacher


def test_a_file_of_weights_that_is_not_there_is_named(store, tmp_path):
    path = tmp_path / "none.pt"
    experiment = parse(TAUGHT, "x", [f"run.teacher.weights={path}"])
    with pytest.raises(ConfigError) as error:
        resolve(experiment, store)
    assert str(error.value) == (
        f"experiment.run.teacher.weights: {path}: cannot be read (No such file or directory)"
    )


# Shipped experiments, and the schema by which editors check them


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    value = json.loads(json.dumps(schema_of()))
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


def test_shipped_experiments_can_be_read_and_suit_the_schema(schema):
    assert SHIPPED
    for path in SHIPPED:
        assert load(path).runs
        schema.validate(yaml.safe_load(path.read_text()))


def test_the_schema_takes_what_recipes_write(schema):
    for text in (PLAIN, TAUGHT + "  method: {name: skd, weight: [[0, 0.9], [60, 0.5]]}\n"):
        schema.validate({"run": student(text).plain(), "scale": Scale().plain()})


def test_the_schema_finds_the_mistakes_that_do_not_depend_on_other_values(schema):
    for what in ("an unknown key", "text for a number", "a negative number", "no run"):
        text, _ = MISTAKES[what]
        with pytest.raises(jsonschema.ValidationError):
            schema.validate(yaml.safe_load(text))
