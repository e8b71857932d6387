"""A store that lies elsewhere, as nodes with copies of their own see it."""

import time
from pathlib import Path
from typing import ClassVar

import pytest

from raykd.core.errors import ConfigError, Unreachable
from raykd.core.record import Recipe
from raykd.storage.filesystem import Remote
from raykd.storage.store import MARKER, Store
from tests.tiers import slow_but


class Cake(Recipe):
    """A recipe."""

    kind: ClassVar[str] = "cakes"

    eggs: int = 3


class Node:
    """A machine: it has nothing but the URL, and a folder for its copy."""

    def __init__(self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.folder, self._environment = url, folder, monkeypatch

    def store(self, **settings) -> Store:
        """The store, as a new process of the node makes it."""
        self._environment.setenv("RAYKD_LOCAL", str(self.folder))
        return Store(self.url, **settings)


@pytest.fixture(params=slow_but(["s3", "file"], ["file"]))
def url(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return f"file://{tmp_path}/mounted"


@pytest.fixture
def nodes(url, tmp_path, monkeypatch):
    return [Node(url, tmp_path / name, monkeypatch) for name in ("one", "two")]


def bake(store: Store, cake: Cake, content: bytes = b"flour") -> None:
    folder = store.path(cake)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(content)
    (folder / "result.json").write_bytes(b"[1]")
    store.finish(cake)


def test_what_one_node_finished_another_one_has(nodes):
    here, there = (node.store() for node in nodes)
    assert here.root != there.root
    assert not here.has(Cake())
    assert not there.has(Cake())
    bake(here, Cake())
    for store in (here, there, nodes[1].store()):
        assert store.has(Cake())
        assert not store.has(Cake(eggs=4))
    folder = there.path(Cake())
    assert {path.name for path in folder.iterdir()} == {"result.json", MARKER}
    assert there.pull(folder / "weights.bin").read_bytes() == b"flour"


def test_large_files_come_when_they_are_pulled_and_once(nodes):
    here, there = (node.store() for node in nodes)
    bake(here, Cake())
    path = there.path(Cake()) / "weights.bin"
    assert there.has(Cake())
    assert not path.exists()
    stamp = there.pull(path).stat().st_ino
    assert there.pull(path).stat().st_ino == stamp
    assert not there.pull(there.root / "nothing").exists()


def test_finished_lists_what_is_there_oldest_first(nodes, url):
    here, there = (node.store() for node in nodes)
    for eggs in (5, 1, 3):
        bake(here, Cake(eggs=eggs))
        time.sleep(1.1 if url.startswith("s3") else 0.02)  # an S3 server's clock counts seconds
    (here.path(Cake(eggs=9))).mkdir()
    (here.path(Cake(eggs=9)) / "weights.bin").write_bytes(b"raw")
    here.push(here.path(Cake(eggs=9)) / "weights.bin")
    for store in (here, there):
        assert [*store.finished("cakes")] == [store.path(Cake(eggs=eggs)) for eggs in (5, 1, 3)]
        assert [*store.finished("pies")] == []
    assert (there.path(Cake(eggs=1)) / "result.json").read_bytes() == b"[1]"


def test_the_marker_comes_last(nodes, monkeypatch):
    here = nodes[0].store()
    order: list[str] = []
    push = Remote.push

    def pushed(self, path, name):
        entry = push(self, path, name)
        order.append(Path(name).name)  # once it is there
        return entry

    monkeypatch.setattr(Remote, "push", pushed)
    bake(here, Cake())
    assert sorted(order[:-1]) == ["result.json", "weights.bin"] and order[-1] == MARKER


@pytest.mark.slow
def test_what_was_discarded_and_made_anew_is_not_mixed_with_what_was_before(nodes):
    here, there = (node.store() for node in nodes)
    bake(here, Cake())
    assert there.has(Cake())
    there.pull(there.path(Cake()) / "weights.bin")
    here.discard(Cake())
    assert not here.has(Cake())
    assert not here.path(Cake()).exists()
    assert not nodes[1].store().has(Cake())
    time.sleep(1.1)
    bake(here, Cake(), b"rice!")
    again = nodes[1].store()
    assert again.has(Cake())
    assert again.pull(again.path(Cake()) / "weights.bin").read_bytes() == b"rice!"


@pytest.mark.slow
def test_a_folder_that_is_made_anew_is_shared_and_brought_whole(nodes):
    for content in (b"first", b"other"):  # of one size
        here, there = (node.store() for node in nodes)
        folder = here.root / "images" / "digest"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.arrow").write_bytes(content)
        (folder / "images.json").write_bytes(b"[]")
        here.share(folder, "images.json")
        theirs = there.root / "images" / "digest"
        assert there.whole(theirs, "images.json")
        assert there.pull(theirs / "train.arrow").read_bytes() == content
        time.sleep(1.1)  # the clock of an S3 server counts seconds


def test_a_file_that_changes_is_renewed(nodes):
    here, there = (node.store() for node in nodes)
    mine, theirs = here.root / "a" / "notes.json", there.root / "a" / "notes.json"
    assert not there.renew(theirs).exists()
    for value in (1, 2):
        here.write_json(mine, value)
        assert mine.read_text() == f"{value}\n"
        assert there.renew(theirs).read_text() == f"{value}\n"
        assert there.elsewhere(theirs) == f"{value}\n".encode()
    assert [path.name for path in mine.parent.iterdir()] == ["notes.json"]
    here.remove(mine)
    assert not there.renew(theirs).exists()
    assert there.elsewhere(theirs) is None


def test_a_folder_of_texts_is_renewed(nodes):
    here, there = (node.store() for node in nodes)
    for name in "abc":
        here.write_json(here.root / "sheets" / f"{name}.json", name)
    folder = there.root / "sheets"
    assert sorted(path.name for path in there.renew_all(folder).glob("*")) == [
        "a.json", "b.json", "c.json"
    ]  # fmt: skip
    here.remove(here.root / "sheets" / "b.json")
    assert sorted(path.name for path in there.renew_all(folder).glob("*")) == ["a.json", "c.json"]
    here.remove(here.root / "sheets")
    assert not [*there.renew_all(folder).glob("*")]


def test_a_url_makes_the_same_store_again(nodes):
    here = nodes[0].store()
    assert Store(here.url).root == here.root
    assert here.where(here.root / "a" / "b") == f"{here.shown}/a/b"
    assert "?" not in here.shown


def test_other_urls_have_other_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path))
    urls = [
        "s3://bucket/a",
        "s3://bucket/b",
        "s3://bucket/a?endpoint_override=http://h:1",
        "gs://bucket/a",
    ]
    roots = {Store(url).root for url in urls}
    assert len(roots) == 4
    assert all(root.parent == tmp_path for root in roots)
    assert Store("s3://key:secret@bucket/a").root in roots
    monkeypatch.delenv("RAYKD_LOCAL")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Store("s3://bucket/a").root.is_relative_to(tmp_path / "home" / ".cache" / "raykd")


def test_a_local_store_has_nothing_elsewhere(tmp_path):
    store = Store(tmp_path)
    path = store.root / "file"
    assert store.node_cache is None
    assert store.url == store.shown == str(tmp_path.resolve())
    store.write(path, b"data")
    assert store.pull(path) == store.renew(path) == path
    assert path.read_bytes() == b"data"
    assert store.elsewhere(path) is None
    store.push(path)
    assert store.renew(store.root / "none") == store.root / "none"
    assert store.where(path) == str(path)
    store.remove(path)
    assert [*tmp_path.iterdir()] == []


def test_the_bound_on_copies_is_read_from_the_environment_first(tmp_path, monkeypatch):
    assert Store(tmp_path).local_bytes is None
    assert Store(tmp_path, 2.5).local_bytes == 2_500_000_000
    monkeypatch.setenv("RAYKD_LOCAL_GB", "0.001")
    assert Store(tmp_path, 2.5).local_bytes == 1_000_000
    monkeypatch.setenv("RAYKD_LOCAL_GB", "much")
    with pytest.raises(ConfigError, match=r"RAYKD_LOCAL_GB: expected a number, found 'much'"):
        Store(tmp_path)


def test_a_push_that_fails_leaves_no_newer_file_here(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path))
    store = Store(bucket.replace("s3://b", "s3://no-such-"))
    with pytest.raises(Unreachable, match="there is no bucket"):
        store.write(store.root / "file", b"data")
    assert not [path for path in store.root.rglob("*") if path.is_file()]
