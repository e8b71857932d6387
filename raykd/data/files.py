"""Files below a root, on this machine or on s3:// and gs://: listed, and read by ranges of bytes.

A URL may have the options of pyarrow's file systems: s3://bucket/images?region=eu-west-1, or
?endpoint_override=... for another server that speaks S3. Keys come from the environment.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from raykd.errors import DataError

_OPEN_FILES = 16  # that each thread keeps open


@dataclass(frozen=True)
class Entry:
    """A file that was found."""

    name: str  # below the root, with slashes
    size: int  # in bytes
    changed: int  # when it was modified last, in nanoseconds; 0 where that is not known


class Files:
    """The files below one root."""

    def __init__(self, root: str) -> None:
        """`root` is an absolute path, or a URL."""
        self.root = root
        self.remote = is_url(root)
        self._threads = threading.local()
        self._system: pafs.FileSystem | None = None
        self._base = ""

    @classmethod
    def at(cls, root: str | Path) -> "Files":
        """The files below a path or a URL."""
        text = str(root)
        return cls(text if is_url(text) else str(Path(text).expanduser().resolve()))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}  # another process opens its own files

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])

    def describe(self, name: str) -> str:
        """The whole path of a file, for people."""
        return f"{self.root.partition('?')[0].rstrip('/')}/{name}" if name else self.root

    def walk(self, below: str = "") -> list[Entry]:
        """Every file below a folder, in the order of folders and names; without hidden ones."""
        entries = self._walk_remote(below) if self.remote else self._walk_here(below)
        kept = (entry for entry in entries if all(map(shown, entry.name.split("/"))))
        return sorted(kept, key=lambda entry: entry.name.split("/"))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer where it ends before. Raises `DataError` that names it."""
        try:
            file = self._opened(name)
            if not self.remote:
                size = os.fstat(file).st_size - offset if length is None else length
                return os.pread(file, max(0, size), offset)
            size = file.size() - offset if length is None else length
            return file.read_at(max(0, size), offset)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def open(self, name: str) -> BinaryIO | pa.NativeFile:
        """A file to seek and read in."""
        try:
            if not self.remote:
                return Path(self.root, name).open("rb")
            system, base = self._filesystem()
            return system.open_input_file(f"{base}/{name}")
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if not self.remote:
            return Path(self.root, name).is_file()
        system, base = self._filesystem()
        return system.get_file_info(f"{base}/{name}").type == pafs.FileType.File

    def _opened(self, name: str) -> Any:
        """The file, kept open among those that this thread read last."""
        if not hasattr(self._threads, "files"):
            self._threads.files = OrderedDict()
        files: OrderedDict[str, Any] = self._threads.files
        if name not in files:
            while len(files) >= _OPEN_FILES:
                _, oldest = files.popitem(last=False)
                _close(oldest)
            path = Path(self.root, name)
            files[name] = self.open(name) if self.remote else os.open(path, os.O_RDONLY)
        files.move_to_end(name)
        return files[name]

    def _unreadable(self, name: str, error: Exception) -> DataError:
        reason = getattr(error, "strerror", None) or error
        return DataError(f"{self.describe(name)}: cannot be read ({reason})")

    def _filesystem(self) -> tuple[pafs.FileSystem, str]:
        if self._system is None:
            try:
                self._system, base = pafs.FileSystem.from_uri(self.root)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"{self.root}: cannot be opened ({error}); expected a path, or a URL such as "
                    "s3://bucket/folder"
                ) from error
            self._base = base.rstrip("/")
        return self._system, self._base

    def _walk_here(self, below: str) -> list[Entry]:
        found = []
        for place, folders, names in os.walk(Path(self.root, below)):
            folders[:] = filter(shown, folders)  # os.walk goes into what is left
            for name in filter(shown, names):
                path = Path(place, name)
                stat = path.stat()
                inner = path.relative_to(self.root).as_posix()
                found.append(Entry(inner, stat.st_size, stat.st_mtime_ns))
        return found

    def _walk_remote(self, below: str) -> list[Entry]:
        system, base = self._filesystem()
        folder = f"{base}/{below}".rstrip("/")
        try:
            infos = system.get_file_info(pafs.FileSelector(folder, recursive=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.describe(below)}: cannot be listed ({error}); look at the URL, the region "
                "and the keys in the environment"
            ) from error
        files = (info for info in infos if info.type == pafs.FileType.File)
        return [Entry(info.path[len(base) + 1 :], info.size, info.mtime_ns or 0) for info in files]


def is_url(text: str) -> bool:
    """Whether a place is a URL, and not a path."""
    return "://" in text


def shown(name: str) -> bool:
    """Whether a file or folder counts: macOS leaves ._x.jpg and __MACOSX in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _close(file: Any) -> None:
    if isinstance(file, int):
        os.close(file)
    else:
        file.close()
