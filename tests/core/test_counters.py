"""Counters of a process that trains, and its metrics of an epoch."""

from dataclasses import replace

import pytest
import torch

from raykd.core.counters import METER, Meter, Timed
from raykd.storage.store import Store
from raykd.tracking.jsonl import read_metrics
from raykd.training.inputs import open_cache
from raykd.training.runs import local_host, train
from tests.small import CPU, batch, prepare, student_run, train_logits


def test_steps_and_waits_are_counted_apart(monkeypatch):
    now = 0.0
    monkeypatch.setattr("raykd.core.counters.time.monotonic", lambda: now)
    meter = Meter()

    def batches():
        nonlocal now
        for _ in range(3):
            now += 4.0
            yield batch(8)

    timed = Timed(batches(), meter)
    for _ in timed:
        now += 3.0
        meter.cache_seconds += 1.0  # part of the waiting
    metrics = timed.metrics()
    assert (meter.steps, meter.images) == (3, 24)
    assert (meter.data_seconds, meter.step_seconds) == (12.0, 6.0)
    assert metrics["step_seconds"] == 2.0
    assert metrics["data_wait_seconds"] == 15.0


def test_an_epoch_without_steps_took_no_time():
    assert Timed([], Meter()).metrics()["step_seconds"] == 0.0


def test_batches_pass_through_as_they_are():
    batches = [batch(4, seed=seed) for seed in range(3)]
    assert all(a is b for a, b in zip(Timed(batches, Meter()), batches, strict=True))


@pytest.mark.slow
def test_a_training_counts_its_steps_and_look_ups(tmp_path):
    store = Store(tmp_path)
    run = student_run(store)
    prepare(store, run)
    before = replace(METER)
    train(store, run, local_host(store, run))
    assert METER.steps - before.steps == 9
    assert METER.images - before.images == 288
    hits, misses = METER.cache_hits - before.cache_hits, METER.cache_misses - before.cache_misses
    tests = 3  # evaluations
    assert hits + misses == 9 + tests
    assert METER.shards_fetched == before.shards_fetched  # nothing lies elsewhere
    assert METER.shards_here > before.shards_here
    for line in read_metrics(store.path(run)):
        assert 0 < line["step_seconds"] < line["seconds"]
        assert 0 <= line["data_wait_seconds"] < line["seconds"]


@pytest.mark.slow
def test_made_and_read_bytes_are_those_of_the_files(tmp_path):
    store = Store(tmp_path)
    run = student_run(store)
    before = replace(METER)
    prepare(store, run)
    folders = (store.root / "caches").iterdir()
    written = sum(path.stat().st_size for folder in folders for path in folder.glob("view-*.arrow"))
    assert METER.made_bytes - before.made_bytes == written
    assert METER.made_rows - before.made_rows == 3 * 96 + 180
    cache = open_cache(store, train_logits(run), [0], CPU)
    before = replace(METER)
    cache.take(torch.arange(96), 0)
    cache.take(torch.arange(96), 0)
    size = sum(path.stat().st_size for path in cache.folder.glob("view-*.arrow"))
    assert METER.cache_bytes - before.cache_bytes == pytest.approx(
        2 * size / 3, rel=0.05
    )  # one view of three
    assert METER.cache_misses - before.cache_misses == 1
    assert METER.cache_hits - before.cache_hits == 1
    assert METER.cache_seconds > before.cache_seconds
