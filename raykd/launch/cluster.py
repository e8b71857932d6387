"""Joining a Ray cluster, or starting one of our own on this machine."""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from raykd.errors import NoRoom
from raykd.launch.loopback import on_loopback
from raykd.scale import Scale

# Read by Ray's own processes, so they must be set before any of them starts.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Our metrics go through files; Train's copy of every print is not wanted.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A report blocks until the controller has polled: 2 s by default (Ray 2.60).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Workers at the niceness of the command that started them, not at 15.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def connected(scale: Scale, say: Callable[[str], None], processors: int = 1) -> Iterator[None]:
    """A Ray cluster for the work inside, with at least `processors` logical CPUs if it is ours.

    Joins `scale.address`, else the cluster that RAY_ADDRESS names, else one that runs on this
    machine; else starts its own and stops it at the end.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = standing(scale)
    if address:
        say(f"joining the Ray cluster at {address}")
        try:
            alone = on_loopback() if address == "local" else contextlib.nullcontext()
            with alone, _own_end():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise NoRoom(
                f"no Ray cluster answers at {address} ({error}); start it, or unset RAY_ADDRESS. "
                "A cluster with a token wants RAY_AUTH_MODE=token here too"
            ) from error
        except AuthenticationError as error:
            raise NoRoom(
                f"the Ray cluster at {address} wants a token, and none was found here; write the "
                "cluster's to ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to a file that holds it"
            ) from error
    else:
        # It is made to listen on loopback only; a token would be asked of later clients, too.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        cores = max(os.cpu_count() or 1, processors)
        say(f"starting Ray on this machine with {cores} CPUs")
        with on_loopback(), _own_end():
            context = ray.init(
                "local",
                num_cpus=cores,
                include_dashboard=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        say(f"dashboard: http://{context.dashboard_url}")
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_end() -> Iterator[None]:
    """Have SIGTERM mean afterwards what it meant before: Ray sets a handler of its own (2.60)."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def standing(scale: Scale) -> str | None:
    """The address of the cluster to join; None to start one."""
    return scale.address or os.environ.get("RAY_ADDRESS") or _running_here()


def note_of_cluster() -> Path:
    """Where `ray start` writes down the address of this machine's cluster."""
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"


def _running_here() -> str | None:
    """The address of a cluster that runs on this machine, once it is seen to answer.

    Ray leaves the file behind when a head is killed, and would wait for the dead one.
    """
    note = note_of_cluster()
    if not note.is_file() or note.stat().st_uid not in (0, os.getuid()):
        return None  # what another user wrote there may be a trap
    address = note.read_text().strip()
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return address
    except (OSError, ValueError):
        return None
