"""One small Ray cluster for all tests of this folder that ask for it."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

# Read when Ray's processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine with two CPUs, as `raykd run` starts it.

    In a thread of its own, so that a SIGTERM in a test is not one to the user of the cluster.
    """
    import ray

    from raykd.config.scale import Scale
    from raykd.launch.cluster import connected

    up, over = threading.Event(), threading.Event()

    def hold() -> None:
        with connected(Scale(address="local"), lambda text: None, 2):
            up.set()
            over.wait()

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        while not up.wait(0.1):
            if holding.done():
                holding.result()
        try:
            yield ray
        finally:
            over.set()
            holding.result()
