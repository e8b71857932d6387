"""Copies of a remote cache's shards on a node: fetched once, checked, bounded, opened ahead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raykd.core.errors import CacheCorrupt, NoRoom
from raykd.core.futures import begun
from raykd.outputs import reader as cache_module
from raykd.outputs.manifest import Manifest, Part, Shard, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.outputs.shard_files import ShardFolder
from raykd.storage.store import Store
from tests.at_once import at_once

pytestmark = pytest.mark.slow

ROWS, CLASSES, VIEWS = 512, 100, 4
HALF = ROWS // 2


def columns(view: int) -> dict[str, torch.Tensor]:
    """Invented outputs in a view: numbers that name the row, the class and the view."""
    values = torch.arange(ROWS * CLASSES).view(ROWS, CLASSES) % 97 - 96 - view
    return {"logits": values.half(), "maximum": torch.full((ROWS,), float(view))}


def fill(shelf: ShardFolder) -> Manifest:
    """A cache of views in two shards each."""
    shards = []
    for view in range(VIEWS):
        for start in (0, HALF):
            part = {name: value[start : start + HALF] for name, value in columns(view).items()}
            shard = write_shard(shelf.drafts, Part(view, start, start + HALF), part)
            shelf.add(shard)
            shards.append(shard)
    return Manifest({}, "", ROWS, tuple(shards))


class Place:
    """A cache elsewhere, and nodes that read it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._environment = folder, monkeypatch
        self.url = f"file://{folder}/mounted"
        self.manifest = fill(self.shelf("maker"))
        self.size = self.manifest.shards[0].bytes  # all have the same

    def shelf(self, node: str, copies: float | None = None) -> ShardFolder:
        """The shelf of a new process on a node, with room for some shards."""
        self._environment.setenv("RAYKD_LOCAL", str(self.folder / node))
        bound = None if copies is None else copies * self.size / 1e9
        store = Store(self.url, bound)
        return ShardFolder(store, store.root / "caches" / "some")

    def cache(self, node: str, copies: float | None = None) -> OutputsCache:
        shelf = self.shelf(node, copies)
        return OutputsCache(shelf.folder, self.manifest, shelf=shelf)

    def there(self, shard: Shard) -> Path:
        return self.folder / "mounted" / "caches" / "some" / shard.name


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


def copies(shelf: ShardFolder | OutputsCache) -> set[str]:
    return {path.name for path in shelf.folder.glob("view-*.arrow")}


def of(place: Place, *views: int) -> set[str]:
    return {shard.name for shard in place.manifest.shards if shard.part.view in views}


def assert_answers(cache: OutputsCache, view: int) -> None:
    ids = torch.randperm(ROWS)[:64]
    wanted = columns(view)["logits"].float()[ids] + view
    assert torch.equal(cache.take(ids, view).logits, wanted)


@pytest.mark.parametrize("joined", [0, 1 << 28])
def test_a_view_is_fetched_when_it_is_read(place, monkeypatch, joined):
    monkeypatch.setattr(cache_module, "JOINED_BYTES", joined)
    cache = place.cache("reader")
    assert copies(cache) == set()
    for view in (2, 0):
        assert_answers(cache, view)
    assert copies(cache) == of(place, 0, 2)


def test_a_maker_leaves_its_shards_here_and_there(place):
    shelf = place.shelf("maker")
    assert copies(shelf) == shelf.names() == {shard.name for shard in place.manifest.shards}
    assert not [*shelf.drafts.iterdir()]
    good, said = place.shelf("other").survey()  # by their names alone
    assert (set(good), said) == (set(place.manifest.shards), [])
    assert copies(place.shelf("other")) == set()


def test_a_killed_maker_s_shards_are_pushed_by_the_next_one(place):
    shelf = place.shelf("maker")
    part = {name: value[:HALF] for name, value in columns(7).items()}
    whole = write_shard(shelf.drafts, Part(7, 0, HALF), part)
    broken = write_shard(shelf.drafts, Part(8, 0, HALF), part)
    path = shelf.drafts / broken.name
    path.write_bytes(path.read_bytes()[:-1])
    good, said = shelf.survey()
    assert whole in good
    assert broken not in good
    assert len(said) == 1
    assert f"{path}: the shard was truncated or altered" in said[0]
    assert place.there(whole).is_file()
    assert not path.exists()


def test_the_bound_is_kept_and_what_was_used_last_stays(place):
    cache = place.cache("reader", copies=4.5)
    for view in (0, 1, 0, 2):
        assert_answers(place.cache("reader", copies=4.5), view)
        assert len(copies(cache)) <= 4
    assert copies(cache) == of(place, 0, 2)


def test_a_view_that_is_open_outlives_its_copies(place, monkeypatch):
    monkeypatch.setattr(cache_module, "JOINED_BYTES", 0)
    cache = place.cache("reader", copies=2)
    assert_answers(cache, 0)
    assert_answers(place.cache("reader", copies=2), 1)
    assert copies(cache) == of(place, 1)
    assert_answers(cache, 0)  # from its map
    assert_answers(cache, 3)


def test_makers_keep_the_bound_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "maker"))
    size = len(columns(0)["logits"]) * CLASSES * 2
    store = Store(f"file://{tmp_path}/mounted", 1.2 * size / 1e9)
    shelf = ShardFolder(store, store.root / "caches" / "some")
    manifest = fill(shelf)
    assert copies(shelf) == {shard.name for shard in manifest.shards[-2:]}
    assert shelf.names() == {shard.name for shard in manifest.shards}


def test_a_bound_below_one_view_is_said_with_the_size_that_is_needed(place):
    with pytest.raises(NoRoom, match=r"mounted/caches/some: a view takes 0\.000\d+ GB.*local_gb"):
        assert_answers(place.cache("reader", copies=1.5), 0)


def test_a_damaged_shard_is_named_and_removed_there(place):
    shard = place.manifest.shards[2]
    data = bytearray(place.there(shard).read_bytes())
    data[len(data) // 2] ^= 1
    place.there(shard).write_bytes(data)
    cache = place.cache("reader")
    assert_answers(cache, 0)
    with pytest.raises(CacheCorrupt, match=rf"mounted/caches/some/{shard.name}: .*checksum"):
        cache.take(torch.arange(4), 1)
    assert not place.there(shard).exists()
    with pytest.raises(CacheCorrupt, match=f"{shard.name}: the shard is missing"):
        cache.take(torch.arange(4), 1)
    good, _ = place.shelf("maker").survey()
    assert shard not in good
    assert shard.name not in copies(cache)


def test_a_damaged_copy_is_replaced(place):
    assert_answers(place.cache("reader"), 1)
    cache = place.cache("reader")
    shard = place.manifest.shards[3]
    path = cache.folder / shard.name
    path.write_bytes(path.read_bytes()[:-8])
    assert_answers(cache, 1)
    assert path.stat().st_size == shard.bytes
    path.write_bytes(b"")
    cache.check(1)
    assert path.stat().st_size == shard.bytes


FETCHING = """
import sys
from raykd.storage.store import Store
from raykd.outputs.manifest import named
from raykd.outputs.shard_files import ShardFolder
store = Store(sys.argv[1])
shelf = ShardFolder(store, store.root / "caches" / "some")
shards = [named(name, int(sys.argv[2])) for name in sys.argv[3:]]
print("ready", flush=True)
came = shelf.bring(shards)
print(len(came), *((shelf.folder / shard.name).stat().st_ino for shard in shards))
"""


def test_processes_of_a_node_fetch_a_shard_once(place, tmp_path):
    names = sorted(of(place, 0, 1, 2, 3))
    environment = os.environ | {"RAYKD_LOCAL": str(tmp_path / "reader")}
    command = [sys.executable, "-c", FETCHING, place.url, str(place.size), *names]
    shelf = place.shelf("reader")
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as twin:
        assert twin.stdout is not None
        assert twin.stdout.readline() == "ready\n"
        came = shelf.bring(place.manifest.shards)
        inodes = [str((shelf.folder / name).stat().st_ino) for name in names]
        count, *theirs = twin.stdout.read().split()
    assert len(came) + int(count) == len(names)
    assert theirs == inodes


@pytest.mark.parametrize("node", ["reader", None])
def test_a_prefetched_view_needs_no_file_any_more(place, monkeypatch, node):
    monkeypatch.setattr("raykd.outputs.reader.begun", at_once)
    cache = place.cache(node or "maker")
    cache.prefetch(1)
    cache.prefetch(1)
    for shard in place.manifest.shards:
        (cache.folder / shard.name).unlink(missing_ok=True)
        place.there(shard).unlink()
    assert_answers(cache, 1)


def test_views_are_opened_in_the_order_in_which_they_were_asked_for(place):
    cache = place.cache("reader")
    for view in (3, 1, 2):
        cache.prefetch(view)
    for view in (3, 1, 2):
        assert_answers(cache, view)


def test_what_goes_wrong_ahead_is_raised_by_the_look_up(place):
    for shard in place.manifest.shards[2:4]:
        place.there(shard).unlink()
    cache = place.cache("reader")
    cache.prefetch(1)
    cache.prefetch(2)
    with pytest.raises(CacheCorrupt, match="the shard is missing"):
        cache.take(torch.arange(3), 1)
    assert_answers(cache, 2)


def test_a_call_in_the_background_has_its_value_or_its_error():
    assert begun(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        begun(lambda: 1 // 0).result()
