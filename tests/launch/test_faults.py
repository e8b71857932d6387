"""Nothing is lost or made twice, whichever part of a cluster goes away at whatever moment.

Shards that are damaged afterwards are found and made again.

$RAYKD_FAULTS says how many of each kind of fault befall each kind of work: 1, or 20 in a long run.
"""

import os
import random

import pytest

from tests.launch.faults import EPOCHS, KINDS, Site, disturbed, work
from tests.launch.ray_marks import RAY
from tests.launch.soak import damaged, laws, unnoticed

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(7200)]
EACH = int(os.environ.get("RAYKD_FAULTS", "1"))
ROUND = 20  # faults in one life of a store, at most


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.mark.parametrize("command", EPOCHS)
def test_what_is_made_among_faults_is_what_is_made_without(site, tmp_path, command):
    file = tmp_path / f"{command}.yaml"
    file.write_text(work(command))
    words = [command, str(file)]
    reference = tmp_path / "reference"
    disturbed(site, words, reference, (), random.Random(0))
    rng = random.Random(command)
    faults = [kind for kind in KINDS for _ in range(EACH)]
    rng.shuffle(faults)
    number = 0
    while faults:
        store = tmp_path / f"store-{number}"
        happened, repeated = disturbed(site, words, store, faults[:ROUND], rng)
        for kind, count in happened.items():
            for _ in range(count):
                faults.remove(kind)
        print(command, dict(happened), "epochs repeated at a time, at most:", repeated)
        assert happened, "the work was done before anything could happen to it"
        assert laws(store, reference) == []
        assert repeated <= 1
        number += 1
    if command == "run":
        damaged(store, rng)
        assert unnoticed(store) == []
        disturbed(site, ["precompute", str(file)], store, (), rng)
        assert laws(store, reference) == []
