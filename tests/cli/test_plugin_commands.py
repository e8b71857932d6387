"""The plugin that docs/plugins.md shows, and commands about what was made with a plugin."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from raykd.cli import main
from raykd.core import plugins
from tests.plugin import withdrawing, written_from_the_page


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder with the files of the page."""
    return written_from_the_page(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def finished(shown):
    """A store after `raykd run` of the page's experiment, and its row of the student."""
    store = shown / "store"
    with withdrawing():
        report = json.loads(call("run", shown / "mine.yaml", "--store", store, "--json").stdout)
        assert report["work"]["made"] == {
            "teachers": 1, "caches": 2, "preludes": 0, "students": 1,
        }  # fmt: skip
        show = ("show", "students", "--store", store, "--json")
        (row,) = json.loads(call(*show).stdout)
    return store, row


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


def test_the_plugin_of_the_page_has_some_25_lines(shown):
    lines = (shown / "mine.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 25


@pytest.mark.slow
def test_the_plugin_of_the_page_trains_from_a_cache(finished):
    _, row = finished
    assert (row["network"], row["method"]) == ("two_layers", "brier_kd")


@pytest.mark.slow
def test_the_plugin_of_the_page_keeps_the_laws(shown):
    assert call("check-plugin", shown / "mine.py", "--size", "16").stdout.count("yes") == 11


@pytest.mark.slow
def test_stored_networks_of_a_plugin_ask_for_it_and_do_not_execute_it(finished, shown):
    store, row = finished
    (kept,) = (store / "plugins").glob("*.py")
    assert kept.read_bytes() == (shown / "mine.py").read_bytes()
    student = row["fingerprint"]
    Image.new("RGB", (8, 8)).save(shown / "black.png")
    for words in (
        ("show", "students", "--store", store),
        ("predict", student, shown / "black.png", "--store", store),
        ("export", student, "--output", shown / "out", "--store", store),
    ):
        said = call(*words, code=2).stderr
        assert "made with mine.py (SHA-256 " in said, said
        assert "give --plugin mine.py" in said, said
        assert f"read it, then give --plugin {kept}" in said, said
    assert not plugins.loaded()


@pytest.mark.slow
def test_with_the_option_they_go_on(finished, shown):
    store, row = finished
    words = ("show", "students", "--store", store, "--json")
    assert json.loads(call(*words, "--plugin", shown / "mine.py").stdout) == [row]
    (kept,) = (store / "plugins").glob("*.py")
    assert json.loads(call(*words, "--plugin", kept).stdout) == [row]


@pytest.mark.slow
def test_another_content_of_the_plugin_is_said(finished, shown, tmp_path):
    store, _ = finished
    changed = tmp_path / "mine.py"
    changed.write_text((shown / "mine.py").read_text() + "# changed\n")
    words = ("show", "students", "--store", store, "--plugin", changed)
    assert "the mine.py that is loaded has another content" in call(*words, code=2).stderr


@pytest.mark.slow
def test_a_missing_plugin_is_an_error_of_the_option(finished):
    store, _ = finished
    said = call("show", "methods", "--plugin", "no.py", "--store", store, code=2).stderr
    assert said.startswith("error: --plugin: no.py: cannot be read")
