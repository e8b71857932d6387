"""Work that grows and shrinks with the cluster."""

from pathlib import Path

import pytest

from raykd.storage.store import read_json
from tests.launch.faults import Site, experiment
from tests.launch.ray_marks import RAY
from tests.launch.test_preemption import wait

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"), nodes=1)
    yield site
    site.close()


def epochs(store: Path) -> int:
    """Number of finished epochs of the student."""
    return sum(path.read_bytes().count(b"\n") for path in store.glob("students/*/metrics.jsonl"))


def test_a_training_goes_on_with_fewer_workers_and_with_more_again(site, tmp_path):
    file, store = tmp_path / "elastic.yaml", tmp_path / "store"
    file.write_text(
        experiment(
            2,
            20000,
            "scale: {workers: [1, 2], teacher_workers: 1, checkpoint_seconds: 1, wait_minutes: 5}",
        )
    )
    site.grow()
    site.begin(["run", str(file), "--store", str(store)])
    assert wait(lambda: epochs(store) > 50 and len(site.workers("ray::RayTrainWorker")) == 2, 600)
    site.shrink()
    before = epochs(store)
    assert wait(lambda: epochs(store) > before + 200, 600)
    assert len(site.workers("ray::RayTrainWorker")) == 1
    site.grow()
    assert wait(lambda: len(site.workers("ray::RayTrainWorker")) == 2, 600)
    now = epochs(store)
    assert wait(lambda: epochs(store) > now + 100, 600)


def test_a_cache_is_filled_by_nodes_that_come_later(site, tmp_path):
    file, store = tmp_path / "cache.yaml", tmp_path / "store"
    file.write_text(experiment(1500, 1500, "scale: {workers: 1, wait_minutes: 5}"))
    site.shrink()  # none is left: the driver waits for the first
    site.begin(["precompute", str(file), "--store", str(store)])
    assert wait(lambda: "Waiting for nodes, up to 5 min" in site.text(), 600)
    site.grow()
    assert wait(lambda: len([*store.glob("caches/*/view-*.arrow")]) > 20, 600)
    site.grow()
    assert wait(lambda: len(site.workers("ray::Worker")) == 2, 600)
    assert wait(site.done, 600)
    manifests = [read_json(path) for path in store.glob("caches/*/manifest.json")]
    views = [{shard["part"]["view"] for shard in each["shards"]} for each in manifests]
    assert sorted(map(len, views)) == [1, 1500]  # of the test images, and of the others
