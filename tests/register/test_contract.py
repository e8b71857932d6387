"""`check-plugin` finds what breaks a law, and says what it is."""

import json

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.core import plugins
from raykd.register.contract import check_plugin
from tests.plugin import METHOD, MODEL, withdrawing, written


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


def check(folder, *words, code=0):
    result = CliRunner().invoke(main, ["check-plugin", str(folder / "mine.py"), *words])
    assert result.exit_code == code, result.output
    return result.stdout


def test_a_sound_plugin_passes(tmp_path):
    written(tmp_path, METHOD + MODEL)
    rows = json.loads(check(tmp_path, "--json", "--size", "16"))
    assert {row["name"] for row in rows} == {"mine", "small"}
    assert all(row["sound"] for row in rows)
    assert rows[-1]["found"] == "stages: stem 8x16x16, stage1 16x8x8; embedding 16"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


LOSS = "(student - teacher).abs().pow(self.power).mean()"


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("(student - teacher).abs().mean(1)", "expected one number in float32"),
        slow("(student - teacher).sum() / 0", "of random outputs is"),
        ("(student - teacher)[0].abs().mean()", "depends on the order of the batch"),
        slow("(student - teacher.mul_(2)).abs().mean()", "changes the teacher's logits in place"),
        slow("student.no_such_thing", "AttributeError: "),
    ],
)
def test_a_broken_law_is_said(tmp_path, loss, sentence):
    plugin = plugins.load(str(written(tmp_path, METHOD.replace(LOSS, loss))))
    assert any(sentence in row["found"] and not row["sound"] for row in check_plugin(plugin))


READER = '''
import raykd
from raykd.methods.base import Method


@raykd.register.method("reader")
class Reader(Method):
    """Reads embeddings that it does not declare."""

    def losses(self, student, teacher, batch, helpers):
        """Their distance."""
        return {"logits": (student.embedding.mean() - teacher.embedding.mean()).abs()}
'''


@pytest.mark.slow
def test_undeclared_signals_are_found_and_the_command_fails(tmp_path):
    written(tmp_path, READER)
    assert "no" in check(tmp_path, code=1).split()
    rows = json.loads(check(tmp_path, "--json", code=1))
    found = [row["found"] for row in rows if not row["sound"]]
    assert any("it reads what `needs` and `looks` do not name" in text for text in found)


def test_a_network_whose_parts_do_nothing_is_found(tmp_path):
    text = MODEL.replace("self.fc = nn", "self.idle = nn.Linear(3, 3)\n        self.fc = nn")
    rows = [*check_plugin(plugins.load(str(written(tmp_path, text))), 16)]
    assert rows[-1]["found"] == "its output does not depend on idle.weight, idle.bias"
