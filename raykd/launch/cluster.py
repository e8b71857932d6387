"""Joining a Ray cluster, or starting one of our own on this machine."""

import contextlib
import functools
import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, worker
from ray.exceptions import RayError, RayTaskError

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom, RaykdError, Unreachable, WorkFailed
from raykd.core.shutdown import cleaning
from raykd.launch import cluster_probe, private_folder
from raykd.launch.cluster_watch import Watch
from raykd.launch.loopback import on_loopback
from raykd.launch.private_folder import Private

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
_PSUTIL: Any = importlib.import_module("psutil")  # which `import ray` has put on the path
_QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
_TRIES = 2  # of starting a cluster: a busy machine may be too slow for Ray's own limits
_START_SECONDS = 300.0  # for a try
_DASHBOARD_SECONDS = 150.0  # for its dashboard; Ray gives up after 60 by itself
_NODE_SECONDS = 150.0  # for its node; Ray gives up after 30 by itself, which a busy machine needs
_JOIN_SECONDS = 45.0  # for joining one that answers; Ray looks for this machine's node for 60
_LOOK_SECONDS = 5.0  # between two looks at a cluster that was joined
_SILENT_SECONDS = 30.0  # for which it may not answer before it counts as lost
_KEPT = "what was finished is kept, and the same command goes on"


@contextlib.contextmanager
def connected(scale: Scale, say: Callable[[str], None], processors: int = 1) -> Iterator[None]:
    """A Ray cluster for the work inside, with at least `processors` logical CPUs if it is ours.

    Joins `scale.address`, else the cluster that RAY_ADDRESS names, else one that runs on this
    machine; else starts its own and stops it at the end. Raises `Unreachable` where the cluster to
    join does not answer or goes away later, `NoRoom` where none can be started, and `WorkFailed`
    where processes of our own one die.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address, watch = standing(scale), Watch()
    with private_folder.restored(), watch.looking(), contextlib.ExitStack() as stack:
        stack.callback(watch.over, lambda urgent: None)  # shut down, it is not lost
        if address and address != "local":
            _join(address, say, watch)
        else:
            _start(max(os.cpu_count() or 1, processors), say, watch, stack)
        stack.callback(ray.shutdown)
        stack.callback(watch.over, lambda urgent: None)
        try:
            yield
        except Exception as error:
            watch.check()
            if not isinstance(error, RayError) or isinstance(error, RayTaskError):
                raise  # the second: of our own code, with its traceback
            said = (str(error).strip() or "no message").splitlines()[0]
            raise WorkFailed(f"Ray failed: {type(error).__name__}: {said}; {_KEPT}") from error


def _join(address: str, say: Callable[[str], None], watch: Watch) -> None:
    """Connect to a cluster that runs. Raises `Unreachable`."""
    say(f"joining the Ray cluster at {address}")
    place, alone = _answering(address)
    late = _unreachable(address, f"it did not let this process in within {_JOIN_SECONDS:g} s")
    try:
        here = on_loopback() if alone else contextlib.nullcontext()
        with here, _own_end(), watch.limited(_JOIN_SECONDS, late):
            ray.init(address=place, **_QUIET)
    except (RuntimeError, ValueError, ConnectionError, RayError) as error:
        if isinstance(error, RaykdError):
            raise
        raise _unreachable(address, str(error).strip().splitlines()[0]) from error
    if not place.startswith("ray://"):
        watch.over(_Joined(address, place, ray.get_runtime_context().get_node_id()))


def _answering(address: str) -> tuple[str, bool]:
    """Where a cluster answers, and whether it does on this machine's loopback device alone.

    Turns on the token that it asks for. Raises `Unreachable` where none answers, or the token is
    not there.
    """
    try:
        place = address.replace("localhost:", "127.0.0.1:", 1)
        if address == "auto":
            place = services.canonicalize_bootstrap_address_or_die(address)
        own = None if private_folder.mode() == "disabled" else private_folder.token_of(place)
        if own is not None:
            private_folder.ask_for(own)
        answer, alone = cluster_probe.answer_of(place), own is not None
        if not (alone or place.startswith("ray://")):
            # Ray takes the machine's other address for this name, where one of `ray start` listens.
            alone = not _listens(services.canonicalize_bootstrap_address(place))
        if answer == "token" and not private_folder.mode() and private_folder.has_token():
            private_folder.ask_for(None)
            answer = cluster_probe.answer_of(place)
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address, str(error)) from error
    if answer == "token":
        refused = private_folder.mode() == "token" and private_folder.has_token()
        lacking = "another one was found here" if refused else "none was found here"
        if private_folder.mode() == "disabled":
            lacking = "RAY_AUTH_MODE is disabled here"
        raise Unreachable(
            f"the Ray cluster at {address} wants a token, and {lacking}; write the cluster's to "
            "~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to a file that holds it, and "
            "RAY_AUTH_MODE=token"
        )
    return place, alone


def _listens(place: str | None) -> bool:
    """True where something accepts connections at HOST:PORT."""
    host, _, port = (place or "").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def _unreachable(address: str, why: str) -> Unreachable:
    return Unreachable(
        f"no Ray cluster answers at {address} ({why}); start it, or unset RAY_ADDRESS"
    )


class _Joined:
    """A look at a cluster that was joined: whether its head answers, and has the driver's node."""

    def __init__(self, address: str, place: str, node: str) -> None:
        self._address, self._place, self._node = address, place, node
        self._next = self._heard = time.monotonic()

    def __call__(self, urgent: bool) -> RaykdError | None:
        now = time.monotonic()
        if now < self._next and not urgent:
            return None
        self._next = now + _LOOK_SECONDS
        try:
            there = cluster_probe.has_node(self._place, self._node, 5.0 if urgent else 2.0)
        except ConnectionError as error:
            if not urgent and now - self._heard < _SILENT_SECONDS:
                return None
            said = f"the Ray cluster at {self._address} answers no more ({error}); {_KEPT}"
            return Unreachable(f"{said} once the cluster is there again")
        self._heard = now
        if there:
            return None
        return Unreachable(
            f"the Ray node of this machine has left the cluster at {self._address}; {_KEPT} once "
            "the node is there again (`ray start` on it)"
        )


def _start(
    cores: int, say: Callable[[str], None], watch: Watch, stack: contextlib.ExitStack
) -> None:
    """Start a cluster on this machine, which ends with `stack`. Raises `NoRoom`."""
    say(f"starting Ray on this machine with {cores} CPUs")
    open_to_all = private_folder.mode() == "disabled"
    asking = not (open_to_all or private_folder.given_token())
    for left in reversed(range(_TRIES)):
        own = Private(say)
        with contextlib.ExitStack() as tried:
            tried.enter_context(cleaning(functools.partial(_remove, own)))
            tried.callback(_remove, own)
            tried.callback(ray.shutdown)
            if asking:
                private_folder.ask_for(own.token)
            try:
                context = _started(cores, own, watch)
            except (RaykdError, KeyboardInterrupt):
                raise
            except Exception as error:  # Ray raises plain ones, too
                said = " ".join((str(error).strip() or type(error).__name__).split())[:300]
                if not left:
                    raise NoRoom(
                        f"Ray did not start on this machine, {_TRIES} times, at last with: {said}; "
                        "is it very busy, or short of memory? scale.workers=0 does without Ray"
                    ) from error
                say(f"Ray did not start ({said}); trying once more")
                continue
            stack.push(tried.pop_all())
            break
    started: Any = worker._global_node
    processes = started.all_processes
    watch.over(_Own({kind: processes[kind][0].process for kind in ("gcs_server", "raylet")}))
    place = context.address_info["gcs_address"]
    own.note(place)
    say(f"dashboard: http://{context.dashboard_url}; others join with RAY_ADDRESS={place}")
    if open_to_all:
        say("RAY_AUTH_MODE=disabled: every user of this machine can run code there as this one")
    elif asking:
        say(f"both ask for the token in {own.token}")


def _started(cores: int, own: Private, watch: Watch) -> Any:
    late = NoRoom(
        f"Ray did not start on this machine within {_START_SECONDS:g} s: is it very busy?"
    )
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = _DASHBOARD_SECONDS  # read at each start
    with on_loopback(), _own_end(), _patient(own), watch.limited(_START_SECONDS, late):
        return ray.init(
            "local", num_cpus=cores, include_dashboard=True, _temp_dir=str(own.session), **_QUIET
        )


@contextlib.contextmanager
def _patient(own: Private) -> Iterator[None]:
    """A region in which a start waits for its node for longer than Ray does (a constant, 2.60).

    Not where the node's raylet has given up: it waits 15 s for its own agent, another constant.
    """
    get_node: Any = services.get_node

    def await_node(*where: str) -> Any:
        until = time.monotonic() + _NODE_SECONDS
        while True:
            try:
                return get_node(*where)
            except RuntimeError:
                raylets = [each for each in _processes(own) if "raylet_socket_name" in each[1]]
                if time.monotonic() > until or not raylets:
                    raise
            time.sleep(0.2)

    services.get_node = await_node
    try:
        yield
    finally:
        services.get_node = get_node


class _Own:
    """A look at the processes of a cluster of our own without which it is none."""

    def __init__(self, processes: dict[str, Any]) -> None:
        self._processes = processes

    def __call__(self, urgent: bool) -> RaykdError | None:
        for kind, process in self._processes.items():
            status = process.poll()
            if status is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended ({status})"
                return WorkFailed(
                    f"Ray's process {kind} ({process.pid}) {how}; is the machine short of memory? "
                    f"{_KEPT}"
                )
        return None


def _remove(own: Private) -> None:
    """End what is left of a cluster's processes, and remove its folder."""
    for root, _ in _processes(own):
        with contextlib.suppress(_PSUTIL.Error):
            for each in [*root.children(recursive=True), root]:
                with contextlib.suppress(_PSUTIL.Error):
                    each.kill()
    own.remove()


def _processes(own: Private) -> list[tuple[Any, str]]:
    """The processes that this one has started for a cluster, with their commands."""
    found = []
    for each in _PSUTIL.Process().children():
        with contextlib.suppress(_PSUTIL.Error):  # it has just ended
            command = " ".join(each.cmdline())
            found += [(each, command)] if str(own.session) in command else []
    return found


@contextlib.contextmanager
def _own_end() -> Iterator[None]:
    """Have SIGTERM mean what it meant before: Ray sets a handler that exits with 15 (2.60)."""
    here = threading.current_thread() is threading.main_thread()
    handler: Any = signal.getsignal(signal.SIGTERM) if here else None
    try:
        yield
    except SystemExit:
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if callable(handler):
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
    return address if _listens(address) else None
