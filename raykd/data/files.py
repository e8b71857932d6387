"""Files below a root, on this machine or at a URL: listed, and read by ranges of bytes."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raykd.errors import DataError
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
            size = os.fstat(file).st_size - offset if length is None else length
            return os.pread(file, max(0, size), offset)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def open(self, name: str) -> BinaryIO:
        """A file to seek and read in. Raises `DataError` that names it."""
        try:
            if self.remote is None:
                return Path(self.root, name).open("rb")
            system, path = self.remote.at(name)
            return system.open_input_file(path)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.remote is None:
            return Path(self.root, name).is_file()
        return self.remote.entry(name) is not None

    def _opened(self, name: str) -> int:
        """The file, kept open among those that this thread read last."""
        if not hasattr(self._threads, "files"):
            self._threads.files = OrderedDict()
        files: OrderedDict[str, Any] = self._threads.files
        if name not in files:
            while len(files) >= _OPEN_FILES:
                os.close(files.popitem(last=False)[1])
            files[name] = os.open(Path(self.root, name), os.O_RDONLY)
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
