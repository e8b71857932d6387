"""Experiments as objects: the tree of a file, with its checks and its sentences."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import yaml

import raykd
from raykd.api.experiment import plain
from raykd.config.experiment import parse
from raykd.methods.kd import KD
from raykd.recipes import Optim, StudentRun
from tests.each import each

TREE = """
data: {path: /images}
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, augment: {pad: 1}}
  teacher: {model: resnet14, optim: {epochs: 2}}
  method: {name: kd, temperature: 2.0}
  optim: {epochs: 3, batch: 32}
grid: {run.seed: [0, 1]}
scale: {workers: 0}
"""


def student(**changes):
    keys = {
        "data": raykd.Data("digits", holdout=0.1, augment={"pad": 1}),
        "teacher": raykd.Teacher("resnet14", optim={"epochs": 2}),
        "method": {"name": "kd", "temperature": 2.0},
        "optim": {"epochs": 3, "batch": 32},
    }
    return raykd.Student("resnet8", **(keys | changes))


def test_objects_are_the_experiment_of_a_file():
    written = parse(TREE, "one")
    built = raykd.Experiment(
        student(), grid={"run.seed": range(2)}, data="/images", scale={"workers": 0}, name="one"
    )
    assert built.parsed == written
    assert len(built) == 2
    assert repr(built) == "<Experiment 'one': 2 students>"


def test_a_file_is_loaded_as_the_same_type(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(TREE)
    loaded = raykd.load(path, "run.optim.epochs=5")
    assert isinstance(loaded, raykd.Experiment)
    assert loaded.name == "one"
    assert [run.optim.epochs for run in loaded.parsed.students()] == [5, 5]
    path.write_text(TREE.replace("batch: 32", "batch: 0"))
    with pytest.raises(raykd.ConfigError, match=r"one.yaml, line 8"):
        raykd.load(path)


def test_records_of_ours_are_values_too():
    given = student(method=KD(temperature=2.0), optim=Optim(epochs=3, batch=32))
    (run,) = raykd.Experiment(given).parsed.runs
    assert run == raykd.Experiment(student()).parsed.runs[0]
    assert isinstance(run, StudentRun)
    assert raykd.Experiment(run).parsed.runs == (run,)


def test_numbers_of_numpy_and_paths_are_read_as_plain_ones(tmp_path):
    value = {"a": np.float32(0.5), "b": (np.int64(3), tmp_path), "c": np.arange(2)}
    assert plain(value) == {"a": 0.5, "b": [3, str(tmp_path)], "c": [0, 1]}


MISTAKES = [
    {"optimm": {}},
    {"method": "kdd"},
    {"optim": {"epochs": 3, "lr": -1}},
    {"data": {"name": "digitz"}, "views": 0},
    {"teacher": None},
]


@each("changes", MISTAKES, ids=str)
def test_mistakes_give_the_sentences_of_a_file(changes):
    tree = yaml.safe_load(TREE)
    tree["run"] |= changes
    with pytest.raises(raykd.ConfigError) as by_file:
        parse(yaml.safe_dump(tree), "one")
    with pytest.raises(raykd.ConfigError) as by_object:
        raykd.Experiment(student(**changes), grid={"run.seed": [0, 1]})
    assert str(by_object.value) == str(by_file.value)


def test_what_is_no_value_is_refused_with_its_part():
    with pytest.raises(raykd.ConfigError, match=r"experiment\.run: Object of type set"):
        raykd.Experiment(student(optim={"epochs": {3}}))
    with pytest.raises(raykd.ConfigError, match=r"experiment\.grids: no such key"):
        raykd.Experiment(student(), grids={})


def test_overrides_are_those_of_the_command_line():
    built = raykd.Experiment(student(), overrides=["run.method.temperature=3.0"])
    assert built.parsed.students()[0].method == KD(temperature=3.0)


def test_parts_compare_print_and_travel():
    first, again = student(), student()
    assert first == again
    assert hash(first) == hash(again)
    assert first != student(seed=1)
    assert pickle.loads(pickle.dumps(first)) == first
    assert repr(raykd.Data("digits", limit=3)) == "Data(name='digits', limit=3)"


def test_importing_raykd_imports_neither_torch_nor_ray():
    script = (
        "import sys, raykd\n"
        "assert raykd.__version__\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'pydantic', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert issubclass(raykd.ConfigError, raykd.RaykdError)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other():
    for name in raykd.__all__:
        assert getattr(raykd, name) is not None
    assert set(raykd.__all__) <= set(dir(raykd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = raykd.nothing
