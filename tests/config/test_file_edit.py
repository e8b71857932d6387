"""Changes of an experiment file leave all of it but the changed keys as it was."""

import pytest

from raykd.config.experiment import load
from raykd.config.file_edit import edit_file, edited
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError
from tests.each import each

TEXT = """# A student.
run:  # all of it
  model: resnet8     # small
  data: {name: digits, holdout: 0.1}
  optim: {epochs: 40,
          batch: 32}  # a few
  teacher:
    model: resnet14

# Two seeds.
grid:
  run.seed:
  - 0
"""
CHANGES = {
    "run.precision": "bfloat16",
    "run.teacher.precision": "bfloat16",
    "run.optim.batch": 64,
    "run.optim.lr": 0.1,
    "scale.compile": True,
    "scale.teacher_batch": 128,
}
EXPECTED = """# A student.
run:  # all of it
  model: resnet8     # small
  data: {name: digits, holdout: 0.1}
  optim: {epochs: 40,
          batch: 64, lr: 0.1}  # a few
  teacher:
    model: resnet14
    precision: bfloat16
  precision: bfloat16

# Two seeds.
grid:
  run.seed:
  - 0
scale: {compile: true, teacher_batch: 128}
"""


def test_keys_are_replaced_or_added_and_all_else_stays():
    assert edited(TEXT, CHANGES) == EXPECTED
    assert edited(EXPECTED, CHANGES) == EXPECTED


@each(
    ("text", "expected"),
    [
        ("run: {}\nscale:\n", "run: {}\nscale: {compile: true}\n"),
        ("run: {}\nscale: {}", "run: {}\nscale: {compile: true}"),
        ("run: {a: 1}  # end", "run: {a: 1}  # end\nscale: {compile: true}\n"),
        ("run:\r\n  a: 1\r\n", "run:\r\n  a: 1\r\nscale: {compile: true}\r\n"),
        ("scale:\n  compile:   # null\nrun: {}", "scale:\n  compile: true   # null\nrun: {}"),
        ("scale: {\n  workers: 0,\n}\nrun: 0", "scale: {\n  workers: 0, compile: true\n}\nrun: 0"),
        ("a: &a 1\nrun: {}\nb: *a\n", "a: &a 1\nrun: {}\nb: *a\nscale: {compile: true}\n"),
        ("scale:\n  compile: 'false' # 'x'\n", "scale:\n  compile: true # 'x'\n"),
    ],
)
def test_a_file_of_any_layout_gets_a_key(text, expected):
    assert edited(text, {"scale.compile": True}) == expected
    assert read_yaml(expected)["scale"]["compile"] is True


@each(
    ("text", "why"),
    [
        ("a: &a {compile: false}\nscale: *a\n", "line 1: .* by an anchor or an alias"),
        ("scale: &a {compile: false}\nb: *a\n", "line 1: .* by an anchor or an alias"),
        ("scale:\n  compile: &a false\nb: *a\n", "line 2: .* by an anchor or an alias"),
        ("a: &a {compile: false}\nscale: {<<: *a}\n", "line 2: .* comes from a merge"),
        ("a: &a {compile: false}\nb: &b {<<: *a}\nscale:\n  <<: [*b]\n  cpus: 1\n", "a merge"),
        ("scale:\n  compile: >\n    true\n", "line 2: .* several parts or lines"),
        ("scale:\n  compile: [1]\n", "several parts or lines"),
        ("scale: {cpus: 1 # one\n}\n", "without changing something else|not YAML"),
    ],
)
def test_what_cannot_be_changed_alone_is_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        edited(text, {"scale.compile": True})


def test_keys_that_a_grid_or_the_command_line_sets_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.precision: the grid varies this key"):
        edited("run: {}\ngrid: {run.precision: [float32]}", {"run.precision": "bfloat16"})
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    for override in ("run.precision=float32", "run={}"):
        with pytest.raises(ConfigError, match="on the command line"):
            edit_file(path, CHANGES, [override])
    with pytest.raises(ConfigError, match="teacher_batch"):
        edit_file(path, {"scale.teacher_batch": 0})
    assert path.read_text() == TEXT


def test_a_file_is_changed_through_a_link(tmp_path):
    path, link = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(TEXT)
    link.symlink_to(path)
    edit_file(link, CHANGES, ["run.optim.epochs=3"])
    assert link.is_symlink()
    assert path.read_text() == EXPECTED
    (run,) = load(path).students()
    assert (run.precision, run.optim.batch, run.optim.epochs) == ("bfloat16", 64, 40)
