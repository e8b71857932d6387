"""Files below a root, on this machine or at a URL: listed, written, and read by ranges of bytes."""

import os
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from raykd.disk import write_atomic
from raykd.errors import DataError
from raykd.names import is_below
from raykd.remote import Remote, is_url

_OPEN_FILES = 16  # that each thread keeps open


@dataclass(frozen=True)
class Entry:
    """A file that was found."""

    name: str  # below the root, with slashes
    size: int  # in bytes
    changed: float  # when it was modified last, in seconds since 1970


class Files:
    """The files below one root."""

    def __init__(self, root: str) -> None:
        """`root` is an absolute path, or a URL."""
        self.root = root
        self.remote = Remote(root) if is_url(root) else None
        self._threads = threading.local()

    @classmethod
    def at(cls, root: str | Path) -> "Files":
        """The files below a path or a URL."""
        text = str(root)
        return cls(text if is_url(text) else str(Path(text).expanduser().resolve()))

    def __reduce__(self) -> tuple[type["Files"], tuple[str]]:
        return Files, (self.root,)  # another process opens its own files

    def describe(self, name: str) -> str:
        """The whole path of a file, for people."""
        root = self.root if self.remote is None else self.remote.shown
        return f"{root}/{name}" if name else root

    def walk(self, below: str = "") -> list[Entry]:
        """Every file below a folder, in the order of folders and names; without hidden ones."""
        if self.remote is None:
            entries = self._walk_here(below)
        else:
            found = self.remote.entries(below)
            entries = [Entry(entry.name, entry.bytes, entry.mtime) for entry in found]
        kept = (entry for entry in entries if all(map(shown, entry.name.split("/"))))
        return sorted(kept, key=lambda entry: entry.name.split("/"))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer where it ends before. Raises `DataError` that names it."""
        try:
            if self.remote is not None:
                if length is None:
                    return self.remote.read(name)[offset:]
                return self.remote.read_at(name, offset, length)
            file = self._opened(name)
            size = os.fstat(file.number).st_size - offset if length is None else length
            return os.pread(file.number, max(0, size), offset)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def open(self, name: str) -> BinaryIO:
        """A file to seek and read in. Raises `DataError` that names it."""
        try:
            if self.remote is None:
                return self._path(name).open("rb")
            system, path = self.remote.at(name)
            return system.open_input_file(path)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def load(self, name: str) -> pa.Buffer:
        """A whole file: mapped into memory where it lies on this machine."""
        try:
            if self.remote is not None:
                return pa.py_buffer(self.remote.read(name))
            with pa.memory_map(os.fsencode(self._path(name))) as file:  # of a text, UTF-8 alone
                return file.read_buffer()
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a file; a reader sees all of it or nothing.

        Raises `NoRoom` where the disk is full, else `Unreachable`, or `DataError` of a URL.
        """
        if self.remote is None:
            write_atomic(self._path(name), data)
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "file")
                write_atomic(path, data)
                self.remote.push(path, name)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.describe(name)}: cannot be written ({reason})") from error

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        if self.remote is None:
            self._path(name).unlink(missing_ok=True)
        else:
            self.remote.delete(name)

    def find(self, name: str) -> Entry | None:
        """A file as `walk` finds it; None where there is none."""
        if self.remote is not None:
            found = self.remote.entry(name)
            return Entry(name, found.bytes, found.mtime) if found else None
        path = self._path(name)
        if not path.is_file():
            return None
        stat = path.stat()
        return Entry(name, stat.st_size, stat.st_mtime)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.find(name) is not None

    def _path(self, name: str) -> Path:
        """The path of a file of this machine. Raises `DataError` where it is not below the root."""
        if not is_below(name):
            raise DataError(f"{self.root}: {name!r} is not a name of a file in there")
        return Path(self.root, name)

    def _opened(self, name: str) -> "_Descriptor":
        """The file, kept open among those that this thread read last."""
        if not hasattr(self._threads, "files"):
            self._threads.files = OrderedDict()
        files: OrderedDict[str, _Descriptor] = self._threads.files
        if name not in files:
            while len(files) >= _OPEN_FILES:
                files.popitem(last=False)
            files[name] = _Descriptor(self._path(name))
        files.move_to_end(name)
        return files[name]

    def _unreadable(self, name: str, error: Exception) -> DataError:
        reason = getattr(error, "strerror", None) or error
        return DataError(f"{self.describe(name)}: cannot be read ({reason})")

    def _walk_here(self, below: str) -> list[Entry]:
        found = []
        for place, folders, names in os.walk(Path(self.root, below)):
            folders[:] = filter(shown, folders)  # os.walk goes into what is left
            for name in filter(shown, names):
                path = Path(place, name)
                stat = path.stat()
                inner = path.relative_to(self.root).as_posix()
                found.append(Entry(inner, stat.st_size, stat.st_mtime))
        return found


def shown(name: str) -> bool:
    """Whether a file or folder counts: macOS leaves ._x.jpg and __MACOSX in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def parted(place: str) -> tuple[str, str]:
    """The folder and the name of a file: of a URL, the folder keeps the options."""
    path, mark, options = place.partition("?") if is_url(place) else (place, "", "")
    folder, slash, name = path.rpartition("/")
    return (folder or slash or ".") + mark + options, name


def below(place: str, name: str) -> str:
    """A folder in another one: of a URL, with the same options."""
    path, mark, options = place.partition("?") if is_url(place) else (place, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


class _Descriptor:
    """An open file of this machine, which is closed once nothing refers to it.

    So a thread that ends leaves no file open.
    """

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
