"""One small Ray cluster for all tests of this folder that ask for it."""

import os

import pytest

# Read when Ray's processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine with two CPUs, as `raykd run` starts it."""
    import ray

    from raykd.launch.cluster import connected
    from raykd.scale import Scale

    with connected(Scale(address="local"), lambda text: None, 2):
        yield ray
