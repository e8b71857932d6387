"""Output to a terminal, a pipe, a full disk."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykd.core.safe_names import printable_lines
from raykd.storage.store import Store, read_json

RAYKD = Path(sys.executable).with_name("raykd")
TEXT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96}
  optim: {epochs: 1, batch: 32}
  method: label_only
"""
ESCAPES = "\x1b]0;taken\x07\x1b[31m[bold]red\x9b31m"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def raykd(*words, out: Any = subprocess.PIPE, err: Any = subprocess.PIPE, cwd=None):
    """A command that ended: its status, its output and its errors."""
    command = [str(RAYKD), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, stdout=out, stderr=err, cwd=cwd)
    return done.returncode, done.stdout or b"", done.stderr or b""


def gone():
    """The writing end of a pipe that is read by no process."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
def test_a_run_that_is_not_read_does_its_work_and_ends_well(file, tmp_path):
    pipe = gone()
    store = tmp_path / "store"
    assert raykd("run", file, "--store", store, out=pipe, err=pipe)[0] == 0
    assert len([*Store(store).finished("students")]) == 1
    for words in (
        ["run", file],
        ["plan", file],
        ["report", file],
        ["report", file, "--csv"],
        ["show", "students"],
        ["show", "students", "--json"],
    ):
        assert raykd(*words, "--store", store, out=pipe)[0] == 0, words
    os.close(pipe)


def test_help_ends_well_where_the_reader_has_gone():
    pipe = gone()
    assert raykd("--help", out=pipe) == (0, b"", b"")
    os.close(pipe)


@pytest.mark.slow
def test_so_does_looking(tmp_path):
    pipe = gone()
    for words in (["schema"], ["show", "methods"]):
        assert raykd(*words, out=pipe) == (0, b"", b""), words
    status, _, _ = raykd("run", tmp_path / "none.yaml", err=pipe)
    assert status == 2
    os.close(pipe)


@pytest.mark.slow
def test_a_full_disk_below_the_output_is_a_sentence():
    with Path("/dev/full").open("wb") as full:
        status, _, err = raykd("schema", out=full)
        assert status == 6
        assert err.decode().startswith("error: standard output: No space left on device")
        assert raykd("show", "methods", out=full, err=full)[0] == 6
        assert raykd("run", "none.yaml", out=full, err=full)[0] == 2


@pytest.mark.slow
def test_streams_that_are_closed_are_none_of_the_files_that_are_opened(tmp_path):
    script = f'"{RAYKD}" schema --output "{tmp_path}/schema.json" >&- 2>&-'
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 0
    assert read_json(tmp_path / "schema.json")["properties"]


def on_a_terminal(*words, cwd):
    """The bytes that a terminal gets from a command."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [str(RAYKD), *map(str, words)], cwd=cwd, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            more = os.read(ours, 1 << 16)
        except OSError:  # Linux: the other end was closed
            break
        if not more:
            break
        data += more
    os.close(ours)
    process.wait(timeout=300)
    return data


@pytest.mark.slow
def test_escape_sequences_of_names_reach_a_terminal_as_text(tmp_path):
    name = f"a{ESCAPES}\udcff.yaml"
    (tmp_path / name).write_text(TEXT.replace("  method: label_only", '  "x\\e[2J[bold]": 1'))
    data = on_a_terminal("plan", name, "--store", "store", cwd=tmp_path)
    assert b"\x1b]0" not in data and b"\x1b[31m" not in data and b"\x1b[2J" not in data
    assert b"\\x1b]0;taken\\x07" in data
    assert b"[bold]" in data and b"the character 0x001b cannot stand in text" in data


@pytest.mark.slow
def test_so_do_those_of_tables_and_pages(tmp_path):
    name = f"a{ESCAPES}.yaml"
    (tmp_path / name).write_text(TEXT)
    data = on_a_terminal("run", name, "--store", "store", cwd=tmp_path)
    assert b"\x1b]0" not in data and b"\x9b31m" not in data
    assert data.count(b"[bold]red") >= 2, "the progress and the table's title"
    [page] = (tmp_path / "store" / "reports").glob("*.html")
    assert "\x1b" not in page.read_text()
    for kind in ("--markdown", "--csv"):
        status, out, err = raykd("report", name, kind, "--store", "store", cwd=tmp_path)
        assert status == 0 and b"\x1b" not in out + err


def test_lines_stay_lines():
    assert printable_lines("one\ntwo\x1b[0m\r\tthree") == "one\ntwo\\x1b[0m\\r\\tthree"
    assert printable_lines("caf\u00e9 \u732b \U0001f408") == "caf\u00e9 \u732b \U0001f408"
    assert printable_lines("\udcff\u202e") == "\\xff\\u202e"
