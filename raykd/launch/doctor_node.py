"""What a machine says of itself to `raykd doctor`.

These functions are sent to the nodes as they are, so that one answers that has another raykd, or
none: they import nothing but Python's own modules before they are called.
"""

import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("raykd", "torch", "ray", "numpy", "pyarrow")
_SHM = "/dev/shm"  # where Ray keeps its objects on Linux


def facts() -> dict[str, Any]:
    """Versions, limits, room and processors of this machine, as this process finds them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shm = shutil.disk_usage(_SHM) if Path(_SHM).is_dir() else None
    home = Path("~/.ray/auth_token").expanduser()
    token = any(os.environ.get(f"RAY_AUTH_TOKEN{end}") for end in ("", "_PATH")) or home.is_file()
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), **_versions()},
        "time": time.time(),
        "open_files": soft,
        "shm_bytes": None if shm is None else shm.total,
        "temp_free": shutil.disk_usage(tempfile.gettempdir()).free,
        "auth_mode": os.environ.get("RAY_AUTH_MODE", ""),
        "token": token,
        "gpus": _gpus(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = _imported(name)
    return found


def _imported(name: str) -> str:
    """The version of a package that is on the path but was not installed."""
    try:
        return str(getattr(__import__(name), "__version__", "unknown"))
    except ImportError:
        return "missing"


def _gpus() -> int | None:
    """The GPUs that torch sees here, whatever Ray has hidden of them; None without torch."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them from what asks for none
    try:
        import torch
    except (ImportError, OSError):  # the second: a library of CUDA's that is missing
        return None
    return torch.cuda.device_count()


def leave(place: str, name: str, text: str) -> str:
    """Write a small file below a store; what went wrong, or nothing."""
    try:
        if "://" in place:
            from raykd.storage.filesystem import Remote

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "file")
                path.write_text(text)
                Remote(place).push(path, name)
        else:
            path = Path(place, name)
            with path.open("x") as file:  # in a folder that is there
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except Exception as error:
        return _said(error)
    return ""


def seen(place: str, folder: str) -> dict[str, str] | str:
    """What the files in a folder below a store hold, by their names; or what went wrong."""
    try:
        if "://" in place:
            from raykd.storage.filesystem import Remote

            remote = Remote(place)
            texts = {entry.name: remote.read(entry.name) for entry in remote.entries(folder)}
            return {Path(name).name: text.decode() for name, text in texts.items()}
        return {path.name: path.read_text() for path in Path(place, folder).iterdir()}
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip() or "no message"
    return f"{type(error).__name__}: {str(reason).splitlines()[0]}"


class Probe:
    """A process on a node that answers."""

    def facts(self) -> dict[str, Any]:
        """Of the node."""
        return facts()

    def leave(self, place: str, name: str, text: str) -> str:
        """See there."""
        return leave(place, name, text)

    def seen(self, place: str, folder: str) -> dict[str, str] | str:
        """See there."""
        return seen(place, folder)

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()
