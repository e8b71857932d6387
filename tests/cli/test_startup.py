"""Imports of commands before they answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raykd.config.experiment import load
from raykd.config.schema import schema
from raykd.config.tree import check
from raykd.core.errors import ConfigError

# Runs the command line, then says whether torch was imported.
PROGRAM = """
import sys
from raykd.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules, file=sys.stderr)
"""
GOOD = """
run:
  model: resnet8
  data: {name: digits, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2}}
  method: {name: sakd, base: at}
scale: {workers: 0}
"""
WRONG = {
    "run.optim.epcohs=3",
    "run.data.augment.pads=1",
    "run.method.basis=kd",
    "run.teacher.optim.rate=1",
    "run.teacher.modle=resnet8",
    "run.assistant=resnet8",
    "run.nothing.like.this=1",
    "scale.worker=2",
    "data.paths=x",
    "sweep.sample=3",
    "ran.seed=1",
    "run.seed",
}


def command(*words):
    """The last line on standard error of a command line: status, and if torch was imported."""
    program = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    *said, end = done.stderr.splitlines()
    return "\n".join(said), end


def test_mistakes_that_need_no_torch_are_told_without_it(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [")
    for words in (["nowhere.yaml"], [str(broken)], [str(file), "ran.seed=1"]):
        said, end = command("run", *words)
        assert said.startswith("error: ")
        assert end == "2 False"


@pytest.mark.slow
def test_what_is_remembered_answers_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_REMEMBERED", str(tmp_path / "remembered"))
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    for words in (["run", str(file), "run.optim.epcohs=3"], ["show", "methods"]):
        first, second = command(*words), command(*words)
        assert first[0].removeprefix("importing torch ...\n") == second[0]
        assert first[1].endswith("True")
        assert second[1].endswith("False")


def test_a_key_that_is_wrong_is_told_alike_with_and_without_recipes(tmp_path):
    file, known = tmp_path / "good.yaml", json.loads(json.dumps(schema()))
    file.write_text(GOOD)
    check(file, (), known)
    for setting in sorted(WRONG):
        with pytest.raises(ConfigError) as whole:
            load(file, [setting])
        with pytest.raises(ConfigError) as early:
            check(file, [setting], known)
        assert str(early.value) in str(whole.value).splitlines()  # a teacher may share the key


def test_no_experiment_of_ours_has_a_key_that_is_unknown():
    files = [*(Path(__file__).parents[2] / "experiments").rglob("*.yaml")]
    known = schema()
    for file in files:
        check(file, (), known)
    assert len(files) > 5


def test_a_key_whose_values_a_grid_lists_is_not_looked_at(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(GOOD + "grid: {run.method: [kd, skd]}")
    check(file, ["grid.run.method=[{name: kd, basis: at}]"], schema())


def test_an_empty_panel_is_left_to_what_reads_it(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    for teacher in ("{panel: []}", "{panel: null, combine: none}"):
        check(file, [f"run.teacher={teacher}"], schema())
    for members in ("[]", "{model: resnet8}"):
        with pytest.raises(ConfigError) as caught:
            load(file, [f"run.teacher={{panel: {members}}}"])
        (line,) = str(caught.value).splitlines()  # and none on data, which nobody wrote
        assert line.startswith("experiment.run.teacher.panel: ")
