"""The folder of a cluster of our own, which its user alone can enter.

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
from ray.exceptions import AuthenticationError

from raykd.core.errors import NoRoom

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_RAY: Any = _raylet  # which is compiled
_PREFIX = "raykd-"
# Sockets have names of so many bytes at most. The longest of Ray's below its folder (Ray 2.60):
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_LONGEST = len("/session_2026-01-01_00-00-00_000000_/sockets/dash_MetricsHead") + len(str(1 << 22))
_REMOVE_SECONDS = 3.0  # for processes that still write logs while they end


class Private:
    """A folder for one cluster: `ray` for Ray's session, `token`, and `address` once it is up."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Raises `NoRoom` where there is no folder whose name is short enough."""
        wanted, *others = places()
        place = next((each for each in (wanted, *others) if _suits(each)), None)
        if place is None:
            raise NoRoom(
                f"{wanted}: Ray's sockets have names of at most {_SOCKET_BYTES} bytes, so this "
                f"folder may have {_room()}, and no other one can be written; set RAY_TMPDIR to a "
                "folder with a short name"
            )
        if place != wanted:
            say(
                f"{wanted} is too long a name for Ray's sockets (at most {_room()} bytes), or "
                f"cannot be written: Ray's files lie below {place}"
            )
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))  # of mode 0700
        self.session = self.folder / "ray"
        self.token = self.folder / "token"
        _write(self.token, secrets.token_hex(32))

    def note(self, address: str) -> None:
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


def places() -> list[Path]:
    """Folders below which a cluster of our own may have its own, the preferred one first."""
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    names = (wanted, "/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    return [*dict.fromkeys(Path(name).absolute() for name in names)]


def token_of(address: str) -> Path | None:
    """The token of the cluster at an address, where a command of this user has started it."""
    for place in places():
        for note in place.glob(f"{_PREFIX}*/address"):
            with contextlib.suppress(OSError):
                folder = note.parent.lstat()
                own = folder.st_uid == os.getuid() and not folder.st_mode & 0o077
                if own and note.read_text() == address:
                    return note.parent / "token"
    return None


def mode() -> str:
    """How Ray was told to authenticate; nothing where it was not told."""
    return os.environ.get(MODE, "").strip().lower()


def has_token() -> bool:
    """True where Ray finds a token, in the environment or in ~/.ray/auth_token."""
    try:
        return bool(_RAY.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:  # its file cannot be read, or holds none
        return False


def given_token() -> bool:
    """True where the environment names a token."""
    return any(os.environ.get(name) for name in (TOKEN, TOKEN_PATH))


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """A region after which authentication is what it was before."""
    before = {name: os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)}
    try:
        yield
    finally:
        _set(before)


def ask_for(token: Path | None) -> None:
    """Have this process, and those that it starts, use a token: of a file, or Ray's own."""
    own = {} if token is None else {TOKEN: None, TOKEN_PATH: str(token)}
    _set({MODE: "token", **own})


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray has read them when it was imported (2.60).
    _RAY.Config.initialize("")
    _RAY.AuthenticationTokenLoader.instance().reset_cache()


def _room() -> int:
    """How long the name of a place may be, in bytes."""
    return _SOCKET_BYTES - _LONGEST - len(f"/{_PREFIX}12345678/ray")


def _suits(place: Path) -> bool:
    return len(os.fsencode(place)) <= _room() and os.access(place, os.W_OK | os.X_OK)


def _write(path: Path, text: str) -> None:
    """A file that its user alone can read, whole from the start."""
    aside = path.with_name(f".{path.name}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.rename(path)
