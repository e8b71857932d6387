"""Files below a root, on this machine or at a URL: listed, written, and read by ranges of bytes."""

import errno
import functools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from raykd.core.errors import DataError
from raykd.core.safe_names import is_below, printable
from raykd.storage.atomic import write_atomic
from raykd.storage.filesystem import Remote, is_url

_OPEN_FILES = 64  # kept open between reads


@dataclass(frozen=True)
class Entry:
    """A regular file, or a link to one."""

    name: str  # below the root, with slashes
    size: int  # in bytes
    changed: float  # when it was modified last, in seconds since 1970


@dataclass
class Listing:
    """Everything below a folder, in the order of folders and names, but for hidden names."""

    entries: list[Entry] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # empty ones, too; none at a URL
    # What can be neither read nor entered: links that lead nowhere or to a folder that they lie
    # in, pipes, sockets, devices. None of them is ever opened.
    others: list[str] = field(default_factory=list)


class Files:
    """The files below one root."""

    def __init__(self, root: str) -> None:
        """`root` is an absolute path, or a URL."""
        self.root = root
        self.remote = Remote(root) if is_url(root) else None
        # One that is evicted is closed once no thread reads from it.
        self._descriptors = functools.lru_cache(_OPEN_FILES)(_Descriptor)

    @classmethod
    def at(cls, root: str | Path) -> "Files":
        """The files below a path or a URL; those of file:// are files of this machine."""
        text = str(root)
        parts = urlsplit(text)
        if parts.scheme == "file" and is_url(text) and not parts.netloc:
            text = unquote(parts.path, errors="surrogateescape")
        return cls(text if is_url(text) else str(Path(text).expanduser().resolve()))

    def __reduce__(self) -> tuple[type["Files"], tuple[str]]:
        return Files, (self.root,)  # another process opens the files itself

    def describe(self, name: str) -> str:
        """The whole path of a file, for people."""
        root = self.root if self.remote is None else self.remote.shown
        return printable(f"{root}/{name}" if name else root)

    def listing(self, below: str = "") -> Listing:
        """Everything below a folder; empty where there is no such folder.

        Links are followed, to files and to folders. Raises `DataError` for a folder that cannot be
        listed.
        """
        listing = Listing()
        for item in self._items(below):
            if isinstance(item, Entry):
                listing.entries.append(item)
            else:
                name, is_folder = item
                (listing.folders if is_folder else listing.others).append(name)
        listing.entries.sort(key=lambda entry: entry.name.split("/"))
        for names in (listing.folders, listing.others):
            names.sort(key=lambda name: name.split("/"))
        return listing

    def names(self) -> Iterator[str]:
        """The names of all files, in no order; each as soon as it is listed."""
        yield from (item.name for item in self._items("") if isinstance(item, Entry))

    def walk(self, below: str = "") -> list[Entry]:
        """Every file below a folder, in the order of folders and names; without hidden ones."""
        return self.listing(below).entries

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer where it ends before. Raises `DataError` that names it."""
        try:
            if self.remote is not None:
                if length is None:
                    return self.remote.read(name)[offset:]
                return self.remote.read_at(name, offset, length)
            file = self._descriptors(self._path(name))
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
            with pa.memory_map(
                os.fsencode(self._path(name))
            ) as file:  # bytes: a str would have to be UTF-8
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
        """Remove a file, if it exists."""
        if self.remote is None:
            self._path(name).unlink(missing_ok=True)
        else:
            self.remote.delete(name)

    def find(self, name: str) -> Entry | None:
        """The entry of a file, as `walk` lists it; None if it does not exist."""
        if self.remote is not None:
            entry = self.remote.entry(name)
            return Entry(name, entry.bytes, entry.mtime) if entry else None
        path = self._path(name)
        if not path.is_file():
            return None
        stat = path.stat()
        return Entry(name, stat.st_size, stat.st_mtime)

    def has(self, name: str) -> bool:
        """True if the file exists."""
        return self.find(name) is not None

    def _path(self, name: str) -> Path:
        """The path of a file of this machine. Raises `DataError` where it is not below the root."""
        if not is_below(name):
            raise DataError(f"{self.root}: {name!r} is not a name of a file in there")
        return Path(self.root, name)

    def _unreadable(self, name: str, error: Exception, what: str = "read") -> DataError:
        reason = getattr(error, "strerror", None) or error
        return DataError(f"{self.describe(name)}: cannot be {what} ({reason})")

    def _items(self, below: str) -> Iterator[Entry | tuple[str, bool]]:
        """Every file below a folder; for anything else its name, and True for a folder."""
        if self.remote is None:
            yield from self._local_items(below)
            return
        for entry in self.remote.entries(below):
            if all(map(is_visible, entry.name.split("/"))):
                yield Entry(entry.name, entry.bytes, entry.mtime)

    def _local_items(self, below: str) -> Iterator[Entry | tuple[str, bool]]:
        todo: list[tuple[str, frozenset[tuple[int, int]]]] = [(below, frozenset())]
        while todo:
            folder, above = todo.pop()
            try:
                real = Path(self.root, folder).stat()
                # A folder is identified by its inode, since links give it several names.
                identity = (real.st_dev, real.st_ino)
                if identity in above:
                    yield folder, False
                    continue
                with os.scandir(Path(self.root, folder)) as entries:
                    inner = [entry for entry in entries if is_visible(entry.name)]
            except (FileNotFoundError, NotADirectoryError):
                continue  # it was removed meanwhile
            except OSError as error:
                raise self._unreadable(folder, error, "listed") from error
            if folder != below:
                yield folder, True
            for entry in inner:
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    status = entry.stat()
                    kind = stat.S_IFMT(status.st_mode)
                except OSError:  # a link that leads nowhere, or in a circle
                    yield name, False
                    continue
                if kind == stat.S_IFDIR and is_below(name):
                    todo.append((name, above | {identity}))
                elif kind == stat.S_IFREG and is_below(name):
                    yield Entry(name, status.st_size, status.st_mtime)
                else:
                    yield name, False


def is_visible(name: str) -> bool:
    """True for a file or folder that counts: macOS leaves ._x.jpg and __MACOSX in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def split_path(location: str) -> tuple[str, str]:
    """The folder and the name of a file: of a URL, the folder keeps the options."""
    path, mark, options = location.partition("?") if is_url(location) else (location, "", "")
    folder, slash, name = path.rpartition("/")
    return (folder or slash or ".") + mark + options, name


def join_path(location: str, name: str) -> str:
    """A folder in another one: of a URL, with the same options."""
    path, mark, options = location.partition("?") if is_url(location) else (location, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


class _Descriptor:
    """An open file of this machine, which is closed once nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        # A pipe that has replaced a file since it was listed would block.
        self.number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.number).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # As Python ends, the module's own names may be gone before its objects.
        if self.number >= 0:
            close(self.number)
