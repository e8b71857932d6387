"""Ray Tune's notes in a store, of which nothing is unpickled that raykd's own user did not write.

Going on with a sweep, Tune unpickles `tuner.pkl`, `experiment_state-*.json` (which holds pickles as
text), `search_gen_state-*` and `searcher-state-*` (Ray 2.60). Whoever can write to the store could
leave something else there. So these files end with an HMAC of their name and bytes, put there as
they are written and looked at before anything of them is read. The key is `$RAYKD_KEY`, else a
file that this user alone can read; it never lies in the store.
"""

import contextlib
import hashlib
import hmac
import io
import os
import secrets
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raykd.core.errors import CacheCorrupt, ConfigError

KEY = "RAYKD_KEY"  # the key itself, for a driver whose home does not outlive it
_PICKLED = ("experiment_state", "search_gen_state", "searcher-state")  # beside what ends with .pkl
_MARK = b"\n#raykd-hmac-sha256:"
_TAIL = len(_MARK) + 64


def is_pickled(path: str) -> bool:
    """Whether Tune would unpickle (a part of) a file of this name."""
    name = PurePosixPath(path).name
    return name.endswith(".pkl") or name.startswith(_PICKLED)


def key(*, make: bool = False) -> bytes | None:
    """The user's key; None where there is none and none is to be made.

    Raises `ConfigError` where others can read it.
    """
    given = os.environ.get(KEY)
    if given:
        return given.encode()
    path = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "raykd" / "key"
    if make and not path.is_file():
        _make(path)
    if not path.is_file():
        return None
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others can read this key; chmod 600 {path}, or remove it")
    return path.read_bytes()


def _make(path: Path) -> None:
    """Put a new key in a file, whole from the start."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(aside, path)
        aside.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key of a sweep's notes cannot be written ({error.strerror}); set ${KEY} "
            "to a secret of your own, the same whenever the sweep goes on"
        ) from error


def seal(path: str, data: bytes) -> bytes:
    """The bytes of a file with their mark; without one where this process has no key."""
    own = key()
    return data if own is None else data + _mark(own, path, data)


def unseal(path: str, data: bytes) -> bytes:
    """The bytes of a file without their mark. Raises `CacheCorrupt` where it is not theirs."""
    own, inner = key(), data[:-_TAIL]
    if own is None or not hmac.compare_digest(_mark(own, path, inner), data[-_TAIL:]):
        raise CacheCorrupt(
            f"{path}: reading these notes of Ray Tune's may run what they say, and they bear no "
            f"mark of your key (~/.config/raykd/key or ${KEY}): they were altered, or are of "
            "another user or an older raykd. `raykd sweep --fresh` begins anew; what the sweep has "
            "made stays and is found again"
        )
    return inner


def _mark(own: bytes, path: str, data: bytes) -> bytes:
    said = PurePosixPath(path).name.encode() + b"\0" + data
    return _MARK + hmac.new(own, said, hashlib.sha256).hexdigest().encode()


class _Sealed(io.BytesIO):
    """A file that is written, marked, once it is complete."""

    def __init__(self, files: fs.FileSystem, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path

    def close(self) -> None:
        """Write all of it."""
        if not self.closed:
            data = seal(self._path, self.getvalue())
            with self._files.open_output_stream(self._path) as file:
                file.write(data)
        super().close()


class _Notes(fs.FileSystemHandler):
    """A file system, in which what is pickled is marked."""

    def __init__(self, files: fs.FileSystem) -> None:
        self.files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Notes) and self.files.equals(other.files)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def get_type_name(self) -> str:
        """What it is called."""
        return f"raykd+{self.files.type_name}"

    def normalize_path(self, path: str) -> str:
        """The path as the file system writes it."""
        return self.files.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> Any:
        """What lies at some paths."""
        return self.files.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        """What lies below a path."""
        return self.files.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        self.files.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """Remove a folder."""
        self.files.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Empty a folder."""
        self.files.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Refused: Tune's notes lie in a folder of the store."""
        raise PermissionError("a store's file system is not emptied")

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        self.files.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """Move a file; a mark is of its name, and so it is of no use elsewhere."""
        self.files.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        self.files.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        """A file to read on in."""
        return self._checked(path) if is_pickled(path) else self.files.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        """A file to read anywhere in."""
        return self._checked(path) if is_pickled(path) else self.files.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """A file to write."""
        if is_pickled(path):
            return pa.PythonFile(_Sealed(self.files, path), mode="w")
        return self.files.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """A file to go on with."""
        return self.files.open_append_stream(path, metadata=metadata)

    def _checked(self, path: str) -> Any:
        with self.files.open_input_stream(path) as file:
            return pa.BufferReader(unseal(path, file.read()))


def sealed(files: fs.FileSystem | None) -> fs.PyFileSystem:
    """The file system, or this machine's, in which what Tune pickles is marked."""
    return fs.PyFileSystem(_Notes(files or fs.LocalFileSystem()))


def check(files: fs.FileSystem, folder: str) -> None:
    """Raise `CacheCorrupt` where something in a folder that Tune would unpickle has no mark."""
    for info in files.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        if info.is_file and is_pickled(info.path):
            with files.open_input_stream(info.path):
                pass
