"""A node that is about to be taken away: a checkpoint is kept in time."""

import random
import time
from collections.abc import Callable

import pytest

from tests.launch.faults import Site, differences, disturbed, experiment
from tests.launch.ray_marks import RAY

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


def wait(condition: Callable[[], object], seconds: float) -> bool:
    """True where a condition holds within some seconds."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return bool(condition())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_student_goes_on_from_where_its_spot_node_was_taken_away(site, tmp_path, workers):
    file = tmp_path / "spot.yaml"
    # No checkpoint is due before the end.
    scale = f"workers: {workers}, teacher_workers: 1, checkpoint_seconds: 100000"
    file.write_text(experiment(2, 300, f"scale: {{{scale}}}"))
    disturbed(site, ["run", str(file)], tmp_path / "reference", (), random.Random(0))
    store = tmp_path / "store"
    site.begin(["run", str(file), "--store", str(store)])
    assert wait(lambda: [*store.glob("students/*/metrics.jsonl")] and site.writer(store), 600)
    assert not [*store.glob("students/*/checkpoint.pt")]
    node = site.writer(store)
    site.warn(node, 600)
    assert wait(lambda: [*store.glob("students/*/checkpoint.pt")], 300)
    [path] = store.glob("students/*/metrics.jsonl")
    site.take(node)
    epochs = path.read_bytes().count(b"\n")
    assert epochs > 0, "the first epoch was not over, so this test proved little"
    assert wait(site.done, 600)
    assert differences(store, tmp_path / "reference") == []
