"""Nothing is lost or made twice, whichever part of a cluster goes away at whatever moment.

$RAYKD_FAULTS says how many of each kind of fault befall each kind of work: 1, or 20 in a long run.
"""

import os
import random
from pathlib import Path

import pytest

from experiments.faults import KINDS, Site, differences, disturbed
from tests.launch.marks import RAY

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(7200)]
EACH = int(os.environ.get("RAYKD_FAULTS", "1"))
ROUND = 10  # faults in one life of a store

BASE = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.33, limit: 96, augment: {pad: 1}}
  teacher:
    model: resnet8
    data: {name: digits, holdout: 0.33, limit: 320, augment: {pad: 1}}
    optim: {epochs: 2, batch: 32}
  method: skd
"""
WORK = {
    "precompute": BASE
    + """  views: 600
  optim: {epochs: 600, batch: 32}
scale: {workers: 1, max_failures: 1000}
""",
    "training": BASE
    + """  views: 2
  optim: {epochs: 1200, batch: 32}
scale: {workers: 2, teacher_workers: 1, max_failures: 1000, checkpoint_seconds: 0}
""",
    "sweep": BASE
    + """  views: 2
  optim: {epochs: 200, batch: 32}
grid: {run.method.name: [kd, skd, at], run.seed: [0, 1]}
scale: {workers: 1, max_failures: 1000, checkpoint_seconds: 0}
""",
}
COMMANDS = {"precompute": "precompute", "training": "run", "sweep": "sweep"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.mark.parametrize("work", WORK)
def test_what_is_made_among_faults_is_what_is_made_without(site, tmp_path, work):
    file = tmp_path / f"{work}.yaml"
    file.write_text(WORK[work])
    words = [COMMANDS[work], str(file)]
    reference = tmp_path / "reference"
    disturbed(site, words, reference, (), random.Random(0))
    rng = random.Random(work)
    faults = [kind for kind in KINDS for _ in range(EACH)]
    rng.shuffle(faults)
    number = 0
    while faults:
        store = tmp_path / f"store-{number}"
        happened, repeated = disturbed(site, words, store, faults[:ROUND], rng)
        for kind, count in happened.items():
            for _ in range(count):
                faults.remove(kind)
        print(work, dict(happened), "epochs repeated at a time, at most:", repeated)
        assert happened, "the work was done before anything could happen to it"
        assert differences(store, reference) == []
        assert repeated <= 1
        assert not _leftovers(store)
        number += 1


def _leftovers(store: Path) -> list[Path]:
    """Temporary files and locks that nobody holds any more."""
    names = ("**/.*.tmp", "**/.*.new", "locks/*", "*/*/checkpoint.pt")
    return [path for name in names for path in store.glob(name)]
