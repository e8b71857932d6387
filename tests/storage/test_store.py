"""Folders named by the hash of their recipe, complete when their marker is there."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from raykd.core.errors import CacheCorrupt, CacheMismatch, ConfigError, Unreachable
from raykd.core.record import Recipe, fingerprint
from raykd.storage.atomic import remove_leftovers, write_atomic
from raykd.storage.store import MARKER, Store, read_json, read_recipe, write_json
from tests.core.golden_recipes import RECIPES
from tests.each import each


class Cake(Recipe):
    """A recipe."""

    kind: ClassVar[str] = "cakes"

    eggs: int = 3
    layers: tuple[float, ...] = (1.5, 2.0)


# Runs in a process of its own, without torch's threads, so that it may fork: a child rewrites
# the file again and again and is killed somewhere in it, 30 times.
KILLING = """
import os, random, signal, sys, time
from pathlib import Path
from raykd.storage.atomic import remove_leftovers, write_atomic
path, size = Path(sys.argv[1]), 1 << 21
contents = [letter * size for letter in (b"a", b"b", b"c")]
write_atomic(path, contents[0])
clock = random.Random(0)
for _ in range(30):
    child = os.fork()
    if not child:
        while True:
            for content in contents:
                write_atomic(path, content)
    time.sleep(clock.uniform(0.002, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_bytes() in contents, "neither an old nor a new file"
print(len(list(path.parent.glob("*.tmp"))))
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    command = [sys.executable, "-c", KILLING, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    leftovers = int(done.stdout)
    assert leftovers > 0, "no kill fell into a write, so this test proved nothing"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "taken"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(Unreachable, match="taken: cannot be written"):
        write_atomic(target, b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_write_atomic_makes_the_folders_and_replaces_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_json_comes_back_as_it_was(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"z": "text"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    write_json(tmp_path / "value.json", value, sealed=False)
    assert read_json(tmp_path / "value.json") == value
    text = (tmp_path / "value.json").read_text()
    assert text == json.dumps(value, indent=2, sort_keys=True) + "\n"


def test_a_folder_is_named_by_kind_and_fingerprint(store):
    assert store.path(Cake()) == store.root / "cakes" / fingerprint(Cake())
    assert store.path(Cake()) == store.path(Cake(eggs=3))
    assert store.path(Cake()) != store.path(Cake(eggs=4))
    assert not store.root.exists(), "asking for a path makes nothing"


def test_a_folder_without_its_marker_is_not_complete(store):
    store.path(Cake()).mkdir(parents=True)
    (store.path(Cake()) / "weights").write_bytes(b"half")
    assert not store.has(Cake())
    assert list(store.finished("cakes")) == []
    store.finish(Cake())
    assert store.has(Cake())
    assert not store.has(Cake(eggs=4))


def test_the_marker_is_the_recipe(store):
    cake = Cake(eggs=5, layers=(0.1, 1e-4))
    store.finish(cake)
    assert read_recipe(Cake, store.path(cake)) == cake
    assert Cake.read(read_json(store.path(cake) / MARKER)) == cake


def test_discard_removes_everything_and_may_be_repeated(store):
    for eggs in (1, 2):
        store.finish(Cake(eggs=eggs))
    (store.path(Cake(eggs=1)) / "inside").mkdir()
    store.discard(Cake(eggs=1))
    store.discard(Cake(eggs=1))
    assert not store.path(Cake(eggs=1)).exists()
    assert store.has(Cake(eggs=2))


def test_finished_lists_one_kind_oldest_first(store):
    for eggs, age in ((1, 30), (2, 10), (3, 20)):
        store.finish(Cake(eggs=eggs))
        os.utime(store.path(Cake(eggs=eggs)) / MARKER, (1e9 - age, 1e9 - age))
    found = list(store.finished("cakes"))
    assert found == [store.path(Cake(eggs=eggs)) for eggs in (1, 3, 2)]
    assert list(store.finished("pies")) == []


def test_artefacts_of_an_earlier_raykd_are_refused(store):
    """Their folders are named by a hash of the class's name and of defaults, too."""
    search = RECIPES["search"]
    text = json.dumps(
        {"kind": "Search", "value": search.plain()}, sort_keys=True, separators=(",", ":")
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    write_json(store.root / "searches" / name / MARKER, search.plain(), sealed=False)
    with pytest.raises(CacheMismatch, match="an earlier raykd made this store"):
        store.has(search)
    with pytest.raises(CacheMismatch, match="name another one with --store"):
        read_recipe(type(search), *store.finished("searches"))


def test_a_store_stays_where_it_is_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = Store("here")
    monkeypatch.chdir("/")
    assert store.root == tmp_path.resolve() / "here"
    assert Store(Path("~/there")).root == tmp_path.resolve() / "home" / "there"


def test_what_can_be_no_place_of_a_store_is_refused():
    for place in ["", " ", "x" * 300, "a/" + "y" * 300, "a\0b", "s3://", "gs://"]:
        with pytest.raises(ConfigError, match=r"--store|not a place that can be used"):
            Store(place)


@each("data", [b"", b"{", b"[]", b"null", b"3", b"\xe9", b"[" * 100_000, None])
def test_no_content_of_a_json_file_is_a_traceback(tmp_path, data):
    path = tmp_path / "cakes" / "a" / "value.json"
    write_json(path, {"eggs": 3})
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(CacheCorrupt, match=r"value\.json: cannot be read"):
        read_json(path)


def test_a_file_that_was_altered_or_is_anothers_is_not_believed(tmp_path):
    path, other = tmp_path / "cakes" / "a" / "value.json", tmp_path / "cakes" / "b" / "value.json"
    write_json(path, {"eggs": 3})
    write_json(other, {"eggs": 4})
    written = path.read_bytes()
    path.write_bytes(written.replace(b"3", b"5", 1))
    with pytest.raises(CacheCorrupt, match="altered"):
        read_json(path)
    path.write_bytes(other.read_bytes())
    with pytest.raises(CacheCorrupt, match=r"belongs to cakes/b/value\.json"):
        read_json(path)
    path.write_text('{"eggs": 3}')  # from before there were seals
    assert read_json(path) == {"eggs": 3}


def test_a_marker_that_is_another_recipe_is_not_believed(store):
    store.finish(Cake(eggs=4))
    store.finish(Cake(eggs=5))
    marker = store.path(Cake(eggs=4)) / MARKER
    marker.write_bytes((store.path(Cake(eggs=5)) / MARKER).read_bytes())
    for look in (lambda: store.has(Cake(eggs=4)), lambda: read_recipe(Cake, marker.parent)):
        with pytest.raises(CacheCorrupt, match=r"recipe\.json.*Remove this file"):
            look()


def test_leftovers_of_killed_writers_go_and_files_of_writers_at_work_stay(tmp_path):
    left, young, busy = (tmp_path / f".{name}.tmp" for name in ("left", "young", "busy"))
    for path in (left, young, busy):
        path.write_bytes(b"half")
    for path in (left, busy):
        os.utime(path, (0, 0))
    with busy.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert {*tmp_path.iterdir()} == {young, busy}
    remove_leftovers(tmp_path)
    assert {*tmp_path.iterdir()} == {young}
