"""Connection to a Ray cluster: joins one, or starts one of our own on this machine."""

import contextlib
import functools
import importlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, worker
from ray.exceptions import RayError, RayTaskError

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom, RaykdError, Unreachable, WorkFailed, text_of
from raykd.core.shutdown import cleaning
from raykd.launch import cluster_probe, private_cluster
from raykd.launch.cluster_watch import Watch, keeping_handler
from raykd.launch.private_cluster import PrivateFolder, on_loopback

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
_PSUTIL: Any = importlib.import_module("psutil")  # on the path once Ray is imported
_QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
_TRIES = 2  # to start a cluster: a busy machine may be too slow for Ray's own limits
_START_SECONDS = 300.0  # for each try
_DASHBOARD_SECONDS = 150.0  # for the dashboard to start; Ray gives up after 60
_NODE_SECONDS = 150.0  # for the node to start; Ray gives up after 30, too few on a busy machine
_JOIN_SECONDS = 45.0  # to join a cluster that answers; Ray looks for this machine's node for 60
_LOOK_SECONDS = 5.0  # between two looks at a cluster that was joined
_SILENT_SECONDS = 30.0  # without an answer, after which a cluster counts as lost
_KEPT = "what was finished is kept, and the same command goes on"


@contextlib.contextmanager
def connected(scale: Scale, say: Callable[[str], None], processors: int = 1) -> Iterator[None]:
    """Context manager: a Ray cluster, with at least `processors` logical CPUs if it is started.

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
    address, watch = address_to_join(scale), Watch()
    with private_cluster.restoring_auth(), watch.watching(), contextlib.ExitStack() as stack:
        if address and address != "local":
            _join(address, say, watch)
        else:
            _start(max(os.cpu_count() or 1, processors), say, watch, stack)
        stack.callback(ray.shutdown)
        stack.callback(watch.use, None)  # a cluster that is shut down is not lost
        try:
            yield
        except Exception as error:
            watch.check()
            if not isinstance(error, RayError) or isinstance(error, RayTaskError):
                raise  # a RayTaskError is raised by our code, and keeps its traceback
            line = (str(error).strip() or "no message").splitlines()[0]
            raise WorkFailed(f"Ray failed: {type(error).__name__}: {line}; {_KEPT}") from error


def address_to_join(scale: Scale) -> str | None:
    """The address of the cluster to join; None to start one."""
    return scale.address or os.environ.get("RAY_ADDRESS") or _address_on_this_machine()


def address_file() -> Path:
    """The file in which `ray start` writes down the address of this machine's cluster."""
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"


def _address_on_this_machine() -> str | None:
    """The address of a cluster that runs on this machine and accepts connections.

    Ray leaves the file behind when a head is killed, and would wait for the dead one.
    """
    path = address_file()
    if not path.is_file() or path.stat().st_uid not in (0, os.getuid()):
        return None  # an address that another user wrote is not trusted
    address = path.read_text().strip()
    return address if _accepts_connections(address) else None


# Joining


def _join(address: str, say: Callable[[str], None], watch: Watch) -> None:
    """Connect to a cluster that runs. Raises `Unreachable`."""
    say(f"joining the Ray cluster at {address}")
    resolved, is_on_loopback = _probe(address)
    late = _unreachable(address, f"it did not let this process in within {_JOIN_SECONDS:g} s")
    try:
        device = on_loopback() if is_on_loopback else contextlib.nullcontext()
        with device, keeping_handler(signal.SIGTERM), watch.limited(_JOIN_SECONDS, late):
            ray.init(address=resolved, **_QUIET)
    except (RuntimeError, ValueError, ConnectionError, RayError) as error:
        if isinstance(error, RaykdError):
            raise
        raise _unreachable(address, str(error).strip().splitlines()[0]) from error
    if not resolved.startswith("ray://"):
        watch.use(_JoinedCluster(address, resolved))


def _probe(address: str) -> tuple[str, bool]:
    """Resolve an address; returns it, and True where only this machine's loopback answers there.

    Turns on the token that the cluster asks for. Raises `Unreachable` where none answers, or the
    token is missing.
    """
    try:
        resolved = address.replace("localhost:", "127.0.0.1:", 1)
        if address == "auto":
            resolved = services.canonicalize_bootstrap_address_or_die(address)
        is_disabled = private_cluster.auth_mode() == "disabled"
        token = None if is_disabled else private_cluster.token_of(resolved)
        if token is not None:
            private_cluster.use_token(token)
        answer, is_on_loopback = cluster_probe.answer_of(resolved), token is not None
        if not (is_on_loopback or resolved.startswith("ray://")):
            # Ray takes the machine's other address for this one, where `ray start` listens.
            other = services.canonicalize_bootstrap_address(resolved)
            is_on_loopback = not _accepts_connections(other)
        if answer == "token" and not private_cluster.auth_mode() and private_cluster.has_token():
            private_cluster.use_token(None)
            answer = cluster_probe.answer_of(resolved)
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address, str(error)) from error
    if answer == "token":
        is_refused = private_cluster.auth_mode() == "token" and private_cluster.has_token()
        lacking = "another one was found here" if is_refused else "none was found here"
        if private_cluster.auth_mode() == "disabled":
            lacking = "RAY_AUTH_MODE is disabled here"
        raise Unreachable(
            f"the Ray cluster at {address} wants a token, and {lacking}; write the cluster's to "
            "~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to a file that holds it, and "
            "RAY_AUTH_MODE=token"
        )
    return resolved, is_on_loopback


def _accepts_connections(address: str | None) -> bool:
    """True where something accepts connections at HOST:PORT."""
    host, _, port = (address or "").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def _unreachable(address: str, reason: str) -> Unreachable:
    return Unreachable(
        f"no Ray cluster answers at {address} ({reason}); start it, or unset RAY_ADDRESS"
    )


class _JoinedCluster:
    """Loss check of a cluster that was joined: its head answers, and has this machine's node."""

    def __init__(self, address: str, resolved: str) -> None:
        self._address, self._resolved = address, resolved
        self._node = ray.get_runtime_context().get_node_id()
        self._raylet = _raylet()
        self._next = self._last_answer = time.monotonic()

    def __call__(self, urgent: bool) -> RaykdError | None:
        # This process's raylet: the head notices its death only seconds later.
        if self._raylet is not None and not _is_running(self._raylet):
            return self._left()
        now = time.monotonic()
        if now < self._next and not urgent:
            return None
        self._next = now + _LOOK_SECONDS
        try:
            has_node = cluster_probe.has_node(self._resolved, self._node, 5.0 if urgent else 2.0)
        except ConnectionError as error:
            if not urgent and now - self._last_answer < _SILENT_SECONDS:
                return None
            return Unreachable(
                f"the Ray cluster at {self._address} answers no more ({error}); {_KEPT} once the "
                "cluster is there again"
            )
        self._last_answer = now
        return None if has_node else self._left()

    def _left(self) -> RaykdError:
        return Unreachable(
            f"the Ray node of this machine has left the cluster at {self._address}; {_KEPT} once "
            "the node is there again (`ray start` on it)"
        )


def _raylet() -> Any:
    """The raylet's process on this machine; None where it is not visible from this container."""
    node: Any = worker._global_node
    word = f"--raylet_socket_name={node.raylet_socket_name}"
    processes = _PSUTIL.process_iter(["cmdline"])
    return next((each for each in processes if word in (each.info["cmdline"] or ())), None)


def _is_running(process: Any) -> bool:
    with contextlib.suppress(_PSUTIL.Error):
        return process.is_running() and process.status() != _PSUTIL.STATUS_ZOMBIE
    return False


# Starting


def _start(
    cores: int, say: Callable[[str], None], watch: Watch, stack: contextlib.ExitStack
) -> None:
    """Start a cluster on this machine, which ends with `stack`. Raises `NoRoom`."""
    say(f"starting Ray on this machine with {cores} CPUs")
    is_open = private_cluster.auth_mode() == "disabled"
    makes_token = not (is_open or private_cluster.environment_has_token())
    for retries in reversed(range(_TRIES)):
        private = PrivateFolder(say)
        with contextlib.ExitStack() as one_try:
            one_try.enter_context(cleaning(functools.partial(_remove, private)))
            one_try.callback(_remove, private)
            one_try.callback(ray.shutdown)
            if makes_token:
                private_cluster.use_token(private.token)
            try:
                context = _init(cores, private, watch)
            except (RaykdError, KeyboardInterrupt):
                raise
            except Exception as error:  # Ray raises plain ones, too
                reason = " ".join(text_of(error).split())[:300]
                if not retries:
                    raise NoRoom(
                        f"Ray did not start on this machine, {_TRIES} times, at last with: "
                        f"{reason}; is it very busy, or short of memory? scale.workers=0 does "
                        "without Ray"
                    ) from error
                say(f"Ray did not start ({reason}); trying once more")
                continue
            stack.push(one_try.pop_all())
            break
    node: Any = worker._global_node
    processes = {kind: node.all_processes[kind][0].process for kind in ("gcs_server", "raylet")}
    watch.use(functools.partial(_loss_of_processes, processes))
    address = context.address_info["gcs_address"]
    private.write_address(address)
    say(f"dashboard: http://{context.dashboard_url}; others join with RAY_ADDRESS={address}")
    if is_open:
        say("RAY_AUTH_MODE=disabled: every user of this machine can run code there as this one")
    elif makes_token:
        say(f"both ask for the token in {private.token}")


def _init(cores: int, private: PrivateFolder, watch: Watch) -> Any:
    """Call `ray.init` for a new cluster, with limits that suit a busy machine."""
    late = NoRoom(
        f"Ray did not start on this machine within {_START_SECONDS:g} s: is it very busy?"
    )
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = _DASHBOARD_SECONDS  # read at each start
    with (
        on_loopback(),
        keeping_handler(signal.SIGTERM),
        _waiting_for_node(private),
        watch.limited(_START_SECONDS, late),
    ):
        folder = str(private.session)
        return ray.init("local", num_cpus=cores, include_dashboard=True, _temp_dir=folder, **_QUIET)


@contextlib.contextmanager
def _waiting_for_node(private: PrivateFolder) -> Iterator[None]:
    """Context manager: `ray.init` waits for its node for longer than Ray's constant (2.60).

    It does not where the node's raylet has given up: that waits 15 s for its own agent, another
    constant.
    """
    get_node: Any = services.get_node

    def get_node_patiently(*arguments: str) -> Any:
        until = time.monotonic() + _NODE_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                commands = [command for _, command in _processes(private)]
                has_raylet = any("raylet_socket_name" in command for command in commands)
                if time.monotonic() > until or not has_raylet:
                    raise
            time.sleep(0.2)

    services.get_node = get_node_patiently
    try:
        yield
    finally:
        services.get_node = get_node


def _loss_of_processes(processes: dict[str, Any], urgent: bool) -> RaykdError | None:
    """Loss check of a cluster of our own: `processes` without which it does not work."""
    for kind, process in processes.items():
        status = process.poll()
        if status is not None:
            end = f"was killed by signal {-status}" if status < 0 else f"ended ({status})"
            return WorkFailed(
                f"Ray's process {kind} ({process.pid}) {end}; is the machine short of memory? "
                f"{_KEPT}"
            )
    return None


def _remove(private: PrivateFolder) -> None:
    """Kill what is left of a cluster's processes, and remove its folder."""
    for root, _ in _processes(private):
        with contextlib.suppress(_PSUTIL.Error):
            for process in [*root.children(recursive=True), root]:
                with contextlib.suppress(_PSUTIL.Error):
                    process.kill()
    private.remove()


def _processes(private: PrivateFolder) -> list[tuple[Any, str]]:
    """The processes that this one has started for a cluster, with their commands."""
    processes = []
    for process in _PSUTIL.Process().children():
        with contextlib.suppress(_PSUTIL.Error):  # it has just ended
            command = " ".join(process.cmdline())
            processes += [(process, command)] if str(private.session) in command else []
    return processes
