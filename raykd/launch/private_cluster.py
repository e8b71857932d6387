"""Parts of a Ray cluster that only the user who started it can reach: folder, token, loopback.

Ray's session folders may be written by all users of a machine (Ray 2.60 gives them mode 0777), and
hold sockets, code that workers import, and objects that are unpickled. So a session of ours lies in
a folder of mode 0700, beside the token that the cluster asks for and the address by which a second
command of the same user joins it.
"""

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import _raylet
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from raykd.core.errors import NoRoom

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LOOPBACK = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
_RAYLET: Any = _raylet  # a compiled module without types
_PREFIX = "raykd-"
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # longest path of a socket
# The longest path of a socket below Ray's folder (Ray 2.60):
_LONGEST = len("/session_2026-01-01_00-00-00_000000_/sockets/dash_MetricsHead") + len(str(1 << 22))
_REMOVE_SECONDS = 3.0  # for processes that still write logs while they end


class PrivateFolder:
    """Folder of one cluster: `ray` for Ray's session, `token`, and `address` once it is up."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Raises `NoRoom` where there is no folder whose path is short enough."""
        preferred, *others = parents()
        parent = next((path for path in (preferred, *others) if _is_suitable(path)), None)
        if parent is None:
            raise NoRoom(
                f"{preferred}: the path of a socket has at most {_SOCKET_BYTES} bytes, so that of "
                f"this folder may have {_longest_parent()}, and no other one can be written; set "
                "RAY_TMPDIR to a folder with a short name"
            )
        if parent != preferred:
            say(
                f"{preferred} is too long a name for Ray's sockets (at most {_longest_parent()} "
                f"bytes), or cannot be written: Ray's files lie below {parent}"
            )
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
        self.session = self.folder / "ray"
        self.token = self.folder / "token"
        _write(self.token, secrets.token_hex(32))

    def write_address(self, address: str) -> None:
        """Write down where the cluster answers."""
        _write(self.folder / "address", address)

    def remove(self) -> None:
        """Remove everything, also what processes write that are about to end."""
        until = time.monotonic() + _REMOVE_SECONDS
        while self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            if time.monotonic() > until:
                return
            if self.folder.exists():
                time.sleep(0.1)


def parents() -> list[Path]:
    """Folders below which a private folder may be made, the preferred one first."""
    preferred = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    names = (preferred, "/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    return [*dict.fromkeys(Path(name).absolute() for name in names)]


def token_of(address: str) -> Path | None:
    """The token file of a cluster that this user started; None for other clusters."""
    for parent in parents():
        for path in parent.glob(f"{_PREFIX}*/address"):
            with contextlib.suppress(OSError):
                folder = path.parent.lstat()
                is_private = folder.st_uid == os.getuid() and not folder.st_mode & 0o077
                if is_private and path.read_text() == address:
                    return path.parent / "token"
    return None


def auth_mode() -> str:
    """The value of RAY_AUTH_MODE in lower case; empty where it is not set."""
    return os.environ.get(MODE, "").strip().lower()


def has_token() -> bool:
    """True where Ray finds a token, in the environment or in ~/.ray/auth_token."""
    try:
        return bool(_RAYLET.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:  # its file cannot be read, or holds none
        return False


def environment_has_token() -> bool:
    """True where the environment names a token."""
    return any(os.environ.get(name) for name in (TOKEN, TOKEN_PATH))


@contextlib.contextmanager
def restoring_auth() -> Iterator[None]:
    """Context manager: restore the settings of authentication afterwards."""
    before = {name: os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)}
    try:
        yield
    finally:
        _set(before)


def use_token(path: Path | None) -> None:
    """Let this process, and those that it starts, use the token of a file; None: Ray's default."""
    source = {} if path is None else {TOKEN: None, TOKEN_PATH: str(path)}
    _set({MODE: "token", **source})


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Context manager: a cluster that is started or joined has its addresses on 127.0.0.1 alone.

    Ray's processes (the control store, the node's manager, every worker) answer calls on all
    addresses of a machine, and carry out what they are told; only the dashboard keeps to the
    machine by itself (Ray 2.60, seen with `ss -ltnp`). They listen on 127.0.0.1 alone where that
    is the node's address, which no argument of `ray.init` sets, but its setting for laptops.
    """
    before = os.environ.get(_LOOPBACK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOOPBACK] = "0"  # for the processes that are started
    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    try:
        yield
    finally:
        _set_variable(_LOOPBACK, before[0])
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        _set_variable(name, value)
    # Ray read them when it was imported (2.60).
    _RAYLET.Config.initialize("")
    _RAYLET.AuthenticationTokenLoader.instance().reset_cache()


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _longest_parent() -> int:
    """The largest length of a parent folder's path, in bytes."""
    return _SOCKET_BYTES - _LONGEST - len(f"/{_PREFIX}12345678/ray")


def _is_suitable(parent: Path) -> bool:
    is_short = len(os.fsencode(parent)) <= _longest_parent()
    return is_short and os.access(parent, os.W_OK | os.X_OK)


def _write(path: Path, text: str) -> None:
    """Write a file that its user alone can read, atomically."""
    temporary = path.with_name(f".{path.name}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.rename(path)
