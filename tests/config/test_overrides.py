"""Experiment files as trees: YAML that means one thing, and what is said of all else."""

import re

import pytest

from raykd.config.experiment import load
from raykd.config.overrides import override
from raykd.config.strict_yaml import read_lines, read_yaml
from raykd.core.errors import ConfigError
from tests.each import each

FILE = """\
run:
  model: resnet8
  data:
    name: digits
    limit: 0
  optim: &optim
    lr: -1.0
  teacher:
    model: resnet14
    optim:
      <<: *optim
      epochs: 0
grid:
  run.seed: [1, -1, 3]
"""


AMBIGUOUS = [
    ("1:30", "'1:30' is 90 to YAML 1.1 alone; write 90"),
    ("1:30.5", "'1:30.5' is 90.5 to YAML 1.1 alone"),
    ("190:20:30", "is 685230 to YAML 1.1 alone"),
    ("0x10", "'0x10' is 16 to YAML 1.1 alone; write 16"),
    ("010", "'010' is 8 to YAML 1.1 alone"),
    ("-0b11", "'-0b11' is -3 to YAML 1.1 alone"),
    ("1_000", "'1_000' is 1000 to YAML 1.1 alone"),
    ("1_000.5", "'1_000.5' is 1000.5 to YAML 1.1 alone"),
    ("yes", "'yes' is true to YAML 1.1 alone; write true, or quote the text"),
    ("Off", "'Off' is false to YAML 1.1 alone; write false"),
    ("NO", "'NO' is false to YAML 1.1 alone"),
    ("9" * 5000, "a number has more than 300 digits"),
    ("0x" + "f" * 5000, "a number has more than 300 digits"),
    ('"a\\0b"', "the character 0x0000 cannot stand in text"),
    ('"\\x1b[31m"', "the character 0x001b cannot stand in text"),
    ('"\\ud800"', "the character 0xd800 cannot stand in text"),
    ("a\x00b", "the character 0x0000 cannot stand in YAML; remove it"),
    ("\x07", "the character 0x0007 cannot stand in YAML"),
    ("[" * 1000 + "]" * 1000, "more than 50 lists or mappings within each other"),
    ("{a: " * 1000 + "1" + "}" * 1000, "more than 50 lists or mappings"),
    ("&a [*a]", "an alias refers to a mapping or list that contains it"),
    ("&a {b: {c: *a}}", "an alias refers to a mapping or list that contains it"),
    ("&a {<<: *a}", "an alias refers to a mapping or list that contains it"),
    ("{a: 1, b: 2, a: 3}", "'a' is given twice"),
    ("\t- 1", "not YAML"),
    ("*none", "not YAML (found undefined alias 'none')"),
    ("!!python/object:os.system x", "not YAML"),
    ("!!int abc", "not YAML"),
    ("{[1]: 2}", "not YAML"),
    ("!!float abc", "not YAML"),
    ("1\n---\n2", "not YAML"),
]


def test_what_does_not_mean_one_thing_is_a_sentence_in_files_and_overrides(tmp_path):
    for text, message in AMBIGUOUS:
        with pytest.raises(ConfigError) as error:
            read_yaml(text, "mine.yaml")
        assert message in str(error.value)
        assert str(error.value).startswith("mine.yaml")
        with pytest.raises(ConfigError, match=re.escape(message)):
            override({"run": {}}, f"run.seed={text}")
        if "\n" in text or text.startswith("\t"):
            continue
        (tmp_path / "mine.yaml").write_text(f"run:\n  seed: {text}\n")
        with pytest.raises(ConfigError) as error:
            load(tmp_path / "mine.yaml")
        assert str(error.value).startswith(f"{tmp_path}/mine.yaml")
        assert "line 2" in str(error.value)


def test_a_value_that_is_not_what_its_tag_says_is_a_sentence():
    for text in ("!!bool abc", "!!timestamp abc", "2026-13-45"):
        with pytest.raises(ConfigError, match="not YAML"):
            read_yaml(text)


@each("share", ["*{0}, *{0}", "{{<<: [*{0}, *{0}]}}"])
def test_aliases_that_stand_for_millions_are_refused_at_once(share):
    levels = [f"l{n}: &l{n} [{', '.join([share.format(f'l{n - 1}')] * 5)}]" for n in range(1, 20)]
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        read_yaml("\n".join(["l0: &l0 {a: 1, b: 2}", *levels]))


CLEAR = [
    ("0", 0),
    ("-7", -7),
    ("+1", 1),
    ("1e-4", 1e-4),
    (".5", 0.5),
    ("true", True),
    ("False", False),
    ("'yes'", "yes"),
    ("'0x10'", "0x10"),
    ("y", "y"),
    ("null", None),
    ("~", None),
    ("a b", "a b"),
    ("[1, 2]", [1, 2]),
]


def test_what_means_one_thing_is_read():
    assert [(text, read_yaml(text)) for text, _ in CLEAR] == CLEAR


def test_every_key_has_its_line_and_a_merge_s_keys_those_where_they_were_written():
    _, lines = read_lines(FILE)
    assert lines["run.data.limit"] == 5
    assert lines["run.teacher.optim.lr"] == 7
    assert lines["run.teacher.optim.epochs"] == 12
    assert lines["grid.run.seed.1"] == 14


def test_all_mistakes_of_a_file_come_at_once_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE + "scale: {cpus: 0}\n")
    with pytest.raises(ConfigError) as error:
        load(path, ["run.label_weight=1e300"])
    lines = str(error.value).splitlines()
    for key, place in {
        "scale.cpus": f"{path}, line 15",
        "run.data.limit": f"{path}, line 5",
        "run.optim.lr": f"{path}, line 7",
        "run.teacher.optim.epochs": f"{path}, line 12",
        "run.seed": f"{path}, line 14",
        "run.label_weight": "run.label_weight=... on the command line",
    }.items():
        (line,) = [line for line in lines if line.startswith(f"experiment.{key}: ")]
        assert line.endswith(f"({place})")
    (everyone,) = [line for line in lines if line.startswith("experiment.run.optim.lr: ")]
    assert "; in one student and 2 more students (" in everyone
    (alone,) = [line for line in lines if line.startswith("experiment.run.seed: ")]
    assert "student" not in alone


def test_a_name_that_no_file_can_have_is_a_sentence():
    from pathlib import Path

    with pytest.raises(ConfigError, match="cannot be read"):
        load(Path("a\0b.yaml"))


def test_an_item_of_a_list_is_overridden_by_its_number():
    tree = {"run": {"teacher": {"panel": [{"model": "resnet8"}, {"model": "resnet14"}]}}}
    override(tree, "run.teacher.panel.1.size=96")
    override(tree, "run.teacher.panel.0={model: resnet20}")
    assert tree["run"]["teacher"]["panel"] == [
        {"model": "resnet20"},
        {"model": "resnet14", "size": 96},
    ]
    for step in ("2", "first", "-1"):
        with pytest.raises(ConfigError, match=f"a number from 0 to 1 .* got '{step}'"):
            override(tree, f"run.teacher.panel.{step}.size=96")
