"""Facts about a machine, for `raykd doctor`.

This module is sent to the nodes by value, so that a node with another raykd, or none, answers too:
it imports only the standard library until a function is called.
"""

import os
import platform
import resource
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("raykd", "torch", "ray", "numpy", "pyarrow")
_SHM = "/dev/shm"  # where Ray keeps its objects on Linux


def facts() -> dict[str, Any]:
    """Versions, limits, free disk space and GPUs of this machine."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shm = shutil.disk_usage(_SHM) if Path(_SHM).is_dir() else None
    home = Path("~/.ray/auth_token").expanduser()
    token = any(os.environ.get(f"RAY_AUTH_TOKEN{end}") for end in ("", "_PATH")) or home.is_file()
    return {
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in PACKAGES},
        "open_files": soft,
        "shm_bytes": None if shm is None else shm.total,
        "temp_free": shutil.disk_usage(tempfile.gettempdir()).free,
        "auth_mode": os.environ.get("RAY_AUTH_MODE", ""),
        "token": token,
        "gpus": _gpus(),
    }


def _version(name: str) -> str:
    """The version of a package, also of one that is on the path but was not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        try:
            return str(getattr(__import__(name), "__version__", "unknown"))
        except ImportError:
            return "missing"


def _gpus() -> int | None:
    """Number of GPUs that torch sees here, also those hidden by Ray; None without torch."""
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # by Ray, from what asks for none
    try:
        import torch

        return torch.cuda.device_count()
    except (ImportError, OSError):  # the second: a library of CUDA's that is missing
        return None
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden


def write_mark(store: str, name: str, text: str) -> str:
    """Write a small file below a store; returns an error message, empty on success."""
    try:
        if "://" in store:
            from raykd.storage.filesystem import Remote

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "file")
                path.write_text(text)
                Remote(store).push(path, name)
        else:
            path = Path(store, name)
            with path.open("x") as file:  # the folder must exist
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except Exception as error:
        return _message(error)
    return ""


def read_marks(store: str, folder: str) -> dict[str, str] | str:
    """Contents of the files in a folder below a store, by name; or an error message."""
    try:
        if "://" in store:
            from raykd.storage.filesystem import Remote

            remote = Remote(store)
            texts = {entry.name: remote.read(entry.name) for entry in remote.entries(folder)}
            return {Path(name).name: text.decode() for name, text in texts.items()}
        return {path.name: path.read_text() for path in Path(store, folder).iterdir()}
    except Exception as error:
        return _message(error)


def _message(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip() or "no message"
    return f"{type(error).__name__}: {str(reason).splitlines()[0]}"


def clock() -> float:
    """Seconds since 1970, by the node's clock."""
    return time.time()
