"""Plugins are loaded once by their content, and their mistakes are sentences with a place."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from raykd.core import plugins
from raykd.core.errors import ConfigError
from raykd.methods import METHODS
from raykd.models import NETWORKS
from tests.each import each
from tests.plugin import METHOD, MODEL, withdrawing, written


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


def test_a_file_enters_its_things_once(tmp_path):
    plugin = plugins.load("mine.py", written(tmp_path, METHOD + MODEL).parent)
    kind = METHODS["mine"]
    assert METHODS["my_own"] is kind
    assert kind.plugin == METHODS.origin("mine") == NETWORKS.origin("small") == plugin.digest
    assert plugins.load(str(tmp_path / "mine.py")) is plugin
    assert METHODS["mine"] is kind


def test_a_changed_file_replaces_what_it_had_entered(tmp_path):
    first = plugins.load(str(written(tmp_path, METHOD)))
    old = METHODS["mine"]
    second = plugins.load(
        str(written(tmp_path, METHOD.replace("power: int = 2", "power: int = 3")))
    )
    assert second.digest != first.digest
    assert METHODS["mine"]().power == 3
    assert plugins.loaded() == (second,)
    # Back again: the former class, not one more.
    assert plugins.load(str(written(tmp_path, METHOD))) == first
    assert METHODS["mine"] is old


@pytest.mark.slow
def test_pickles_of_a_plugins_classes_bring_it_along(tmp_path):
    plugin = plugins.load(str(written(tmp_path, METHOD)))
    data = pickle.dumps((plugin, METHODS["mine"](power=3)))
    (tmp_path / "mine.py").unlink()
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[1].power)"
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, check=False
    )
    assert done.stdout.split() == [b"3"], done.stderr


def test_a_plugin_of_another_content_is_not_received():
    with pytest.raises(ConfigError, match="another content"):
        plugins.receive("mine.py", "0" * 64, "/nowhere/mine.py", b"x = 1")


@each(
    ("text", "sentence"),
    [
        ("x = 1\n", "mine.py registers nothing; put @raykd.register.method"),
        ("def f(:\n", "mine.py, line 1: invalid syntax; correct it"),
        ("x = 1\ny = z\n", "mine.py, line 2: NameError: name 'z' is not defined; correct it"),
        (
            "import no_such_module\n",
            "mine.py, line 1: ModuleNotFoundError.*install what it imports",
        ),
        ("raise SystemExit(3)\n", "mine.py, line 1: SystemExit: 3"),
        (METHOD.replace('"mine"', '"kd"'), "the method 'kd'; raykd has one of its own; choose"),
        (METHOD.replace('"mine"', '"my-own"'), "'my-own' can be no name of a method"),
        (METHOD.replace("power: int = 2", "power: int"), "give a default to its fields power"),
        (METHOD.replace("def logit_loss", "def loss"), "does not define logit_loss"),
        (METHOD + "    name: str = 'other'\n", "leave the field name out"),
        (
            "import raykd\nraykd.register.method('mine')(int)\n",
            "mine.py, line 2: the method 'mine': expected a subclass of raykd.methods.base.Method",
        ),
        ("import raykd\nraykd.register.model('mine')(3)\n", "expected a function, got 3"),
        (
            "import raykd\nraykd.register.logger('mine')(int)\n",
            "expected a subclass of raykd.tracking",
        ),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_entered(tmp_path, text, sentence):
    names = [*METHODS], [*NETWORKS]
    with pytest.raises(ConfigError, match=sentence):
        plugins.load(str(written(tmp_path, text)))
    assert ([*METHODS], [*NETWORKS]) == names
    assert not plugins.loaded()


def test_an_error_after_a_registration_takes_it_back(tmp_path):
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        plugins.load(str(written(tmp_path, METHOD + "1 / 0\n")))
    assert "mine" not in METHODS
    plugins.load(str(written(tmp_path, METHOD)))  # corrected


def test_two_plugins_cannot_have_one_name(tmp_path):
    plugins.load(str(written(tmp_path, METHOD)))
    with pytest.raises(ConfigError, match=r"'mine'; mine\.py has it already; choose"):
        plugins.load(str(written(tmp_path, METHOD + "# another\n", "other.py")))


def test_a_missing_file_and_a_missing_package_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.py: cannot be read .*relative to the experiment"):
        plugins.load("mine.py", tmp_path)
    with pytest.raises(ConfigError, match="no package is installed as 'no-such-package'"):
        plugins.load("no-such-package", tmp_path)
    written(tmp_path, METHOD)
    with pytest.raises(ConfigError, match=r"name the file: mine\.py"):
        plugins.load("mine", tmp_path)
    with pytest.raises(ConfigError, match=r"the package pytest has no entry point of group raykd"):
        plugins.load("pytest", tmp_path)


def test_nothing_is_registered_in_a_script_or_a_notebook():
    import raykd

    def here(classes):
        return None

    here.__module__ = "__main__"
    with pytest.raises(ConfigError, match=r"%%writefile mine\.py"):
        raykd.register.model("mine")(here)


PACKAGE = {
    "losses_of_mine/__init__.py": "",
    "losses_of_mine/methods.py": METHOD.replace('"mine"', '"packed"').replace("my_own", "pk"),
    "losses_of_mine-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: losses-of-mine\n"
    "Version: 1.0\n",
    "losses_of_mine-1.0.dist-info/entry_points.txt": "[raykd.plugins]\n"
    "mine = losses_of_mine.methods\n",
}
SCRIPT = """
import pickle, sys
from raykd.core import plugins
if len(sys.argv) > 1:
    import losses_of_mine.methods
plugin = plugins.load("losses-of-mine")
from raykd.methods import METHODS
METHODS["packed"](power=3)
again = pickle.loads(pickle.dumps((plugin, METHODS["packed"]())))
assert again == (plugin, METHODS["packed"]())
print(plugin.digest)
"""


@pytest.mark.slow
def test_an_installed_package_is_known_by_its_entry_point(tmp_path):
    def digest(packages: Path, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        return done.stdout

    for name, text in PACKAGE.items():
        written((tmp_path / name).parent, text, (tmp_path / name).name)
    before = digest(tmp_path)
    assert digest(tmp_path, "imported before") == before
    written(tmp_path / "losses_of_mine", "x = 1\n", "__init__.py")
    assert digest(tmp_path) != before
