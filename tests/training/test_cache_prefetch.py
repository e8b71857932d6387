"""Prefetching of the cache: files are open before the epoch that reads them begins."""

import shutil
import threading
import weakref

import pytest
import torch

from raykd.core.errors import CacheCorrupt
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.teachers.anchor_route import Route
from raykd.training.cache_prefetch import CachePrefetch
from raykd.training.inputs import open_cache
from tests.at_once import at_once
from tests.small import CPU, prepare, student_run, teacher_run

VIEWS = 3
EPOCHS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the caches of a student of two anchors, and the student."""
    store = Store(tmp_path_factory.mktemp("made"))
    teacher = teacher_run(store, optim=Optim(epochs=2, batch=32))
    route, optim = Route(anchors=(1, 2), starts=(0, 3)), Optim(epochs=EPOCHS, batch=32)
    run = student_run(store, teacher=teacher, route=route, views=VIEWS, optim=optim)
    prepare(store, run)
    return store.root, run


@pytest.fixture
def run(made):
    return made[1]


@pytest.fixture(params=["local", pytest.param("remote", marks=pytest.mark.slow)])
def store(request, made, tmp_path, monkeypatch):
    """A copy of it, as a folder or by URL."""
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "node"))
    shutil.copytree(made[0], tmp_path / "copied")
    remote = request.param == "remote"
    return Store(f"file://{tmp_path}/copied" if remote else tmp_path / "copied")


def caches_of(store, run):
    def opened(epoch):
        return {"given": [open_cache(store, run.outputs_at(epoch), range(VIEWS), CPU)]}

    return CachePrefetch(run, opened)


@pytest.fixture
def settled(monkeypatch):
    """Background calls are made at once, in the caller."""
    for module in ("raykd.training.cache_prefetch", "raykd.outputs.reader"):
        monkeypatch.setattr(f"{module}.begun", at_once)


@pytest.mark.slow
def test_no_file_is_needed_when_the_next_epoch_begins(store, run, tmp_path, settled):
    ahead = caches_of(store, run)
    ids = torch.arange(96)
    whole = {
        anchor: open_cache(store, run.outputs_at(start), range(VIEWS), CPU)
        for anchor, start in ((1, 0), (2, 3))
    }
    wanted = {
        epoch: whole[run.anchor_at(epoch)].take(ids, run.view_at(epoch)).logits
        for epoch in range(EPOCHS)
    }
    places = {store.root, tmp_path / "copied"}
    for epoch in range(EPOCHS):
        ahead.look_ahead(epoch)
        for place in places:
            (place / "caches").rename(place / "hidden")
        for now in (epoch, epoch + 1):
            if now < EPOCHS:
                found = ahead.at(now)["given"][0].take(ids, run.view_at(now)).logits
                assert torch.equal(found, wanted[now])
        for place in places:
            shutil.rmtree(place / "caches", ignore_errors=True)
            (place / "hidden").rename(place / "caches")


def test_what_goes_wrong_with_the_next_epoch_is_raised_when_it_begins(
    store, run, tmp_path, settled
):
    folder = tmp_path / "copied" / "caches" / store.path(run.outputs_at(0)).name
    for shard in folder.glob("view-000001-*"):
        shard.write_bytes(b"rubbish")
    ahead = caches_of(store, run)
    ahead.look_ahead(0)
    assert len(ahead.at(0)["given"][0].take(torch.arange(4), 0).logits) == 4
    with pytest.raises(CacheCorrupt):
        ahead.at(1)["given"][0].take(torch.arange(4), 1)


def test_only_the_anchor_in_use_and_the_next_are_held(store, run, settled):
    opened = []

    def opening(epoch):
        cache = open_cache(store, run.outputs_at(epoch), range(VIEWS), CPU)
        opened.append((run.anchor_at(epoch), weakref.ref(cache)))
        return {"given": [cache]}

    ahead, held = CachePrefetch(run, opening), []
    for epoch in range(EPOCHS):
        ahead.look_ahead(epoch)
        held.append([anchor for anchor, cache in opened if cache() is not None])
    assert held == [[1], [1], [1, 2], [2], [2], [2]]
    assert len(opened) == 2


def test_looking_ahead_does_not_wait(store, run):
    go = threading.Event()

    def opening(epoch):
        if run.anchor_at(epoch) == 2:
            go.wait()
        return {"given": [open_cache(store, run.outputs_at(epoch), range(VIEWS), CPU)]}

    ahead = CachePrefetch(run, opening)
    ahead.look_ahead(2)  # before another anchor
    go.set()
    assert ahead.at(3)["given"][0].manifest.recipe == run.outputs_at(3).plain()
