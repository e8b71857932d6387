"""A Ray cluster of our own that nobody else can reach.

Ray's processes (the control store, the node's manager, every worker) answer calls on all of a
machine's addresses, and carry out what they are told; only the dashboard keeps to the machine by
itself (Ray 2.60, seen with `ss -ltnp`). They listen on 127.0.0.1 alone where that is the node's
address, which `ray.init` makes of no argument but of the setting that it has for laptops.
"""

import contextlib
import os
from collections.abc import Iterator

from ray._private import ray_constants

_SETTING = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """A region in which a cluster that is started is one of this machine alone."""
    before = os.environ.get(_SETTING), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_SETTING] = "0"  # for the processes that are started
    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    try:
        yield
    finally:
        if before[0] is None:
            del os.environ[_SETTING]
        else:
            os.environ[_SETTING] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
