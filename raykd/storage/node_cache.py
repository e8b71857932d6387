"""A node's copies of the files of a remote store.

Files made on a node are written to the copy first and then uploaded; files that other nodes made
are fetched when they are needed. The processes of a node share the copy: a file appears in it
whole, and one process fetches a large file while the others wait.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from raykd.storage.atomic import lasting, make_folder
from raykd.storage.filesystem import Entry, Remote

_TEXTS = (".json", ".jsonl")  # fetched with an artefact; larger files are fetched one by one
_WITH_CHECKSUM = re.compile(r"-[0-9a-f]{24}\.arrow$")  # names that change with the content
_AT_ONCE = 8  # files that are fetched at a time
_Item = TypeVar("_Item")
_SAME_SECONDS = 1e-3  # two times that are further apart are not equal


def folder_of(remote: Remote) -> Path:
    """Folder of this node's copy of a remote store: below $RAYKD_LOCAL or ~/.cache."""
    base = Path(os.environ.get("RAYKD_LOCAL") or "~/.cache/raykd/stores")
    # The query counts: it may name another server that has a bucket of the same name.
    key = f"{remote.shown}?{urlsplit(remote.url).query}"
    words = "-".join(remote.shown.partition("://")[2].strip("/").split("/"))
    name = f"{words[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    return base.expanduser().resolve() / name


class NodeCache:
    """The files of a remote store, by the local paths of their copies on this node."""

    def __init__(self, remote: Remote, root: Path) -> None:
        self.remote = remote
        self.root = root
        self._sent: dict[str, tuple[int, int]] = {}  # local size and time of files in both places
        self._here: set[str] = set()  # folders whose marker and texts are here
        self._there: dict[str, list[Entry]] = {}  # files of complete folders, once listed
        self._listed: set[str] = set()  # kinds of artefacts that were listed

    def name(self, path: Path) -> str:
        """The name of a local path in the remote store."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """The remote name of a local path, for messages."""
        return f"{self.remote.shown}/{self.name(path)}"

    def push(self, path: Path, target: Path | None = None) -> Entry:
        """Upload a local file, under the name of another path if one is given."""
        name, stat = self.name(target or path), path.stat()
        entry = self.remote.push(path, name)
        self._sent[name] = (stat.st_size, stat.st_mtime_ns)
        return entry

    def share(self, folder: Path, marker: str) -> None:
        """Upload a complete folder, its marker last."""
        sizes = {entry.name: entry.bytes for entry in self.remote.entries(self.name(folder))}
        missing = []
        for path in sorted(folder.glob("[!.]*")):
            name, stat = self.name(path), path.stat()
            same = _WITH_CHECKSUM.search(name) and sizes.get(name) == stat.st_size
            uploaded = same or self._sent.get(name) == (stat.st_size, stat.st_mtime_ns)
            if path.is_file() and path.name != marker and not uploaded:
                missing.append(path)
        _side_by_side(self.push, missing)
        entry = self.push(folder / marker)
        os.utime(folder / marker, (entry.mtime, entry.mtime))  # `_fetch_texts` compares the times
        self._here.add(self.name(folder))

    def whole(self, folder: Path, marker: str) -> bool:
        """True if a folder is complete in the remote store; its texts are then fetched."""
        name = self.name(folder)
        if name in self._here:
            return True
        kind = name.partition("/")[0]
        if kind not in self._listed:
            self.complete(kind, marker)
        if name not in self._there:  # perhaps it was completed since then
            if self.remote.entry(f"{name}/{marker}") is None:
                return False
            self._there[name] = self.remote.entries(name)
        self._fetch_texts(folder, marker)
        self._here.add(name)
        return True

    def complete(self, kind: str, marker: str) -> list[Path]:
        """The complete folders of a kind in the remote store, by their paths here."""
        folders: dict[str, list[Entry]] = {}
        for entry in self.remote.entries(kind):
            folder = entry.name.split("/")[1]
            folders.setdefault(f"{kind}/{folder}", []).append(entry)
        complete = {
            name: entries
            for name, entries in folders.items()
            if any(entry.name == f"{name}/{marker}" for entry in entries)
        }
        self._there |= complete
        self._listed.add(kind)
        return [self.root / name for name in complete]

    def finished(self, kind: str, marker: str) -> list[Path]:
        """The complete folders of a kind, once their texts are here."""
        folders = self.complete(kind, marker)
        _side_by_side(lambda folder: self._fetch_texts(folder, marker), folders)
        return folders

    def _fetch_texts(self, folder: Path, marker: str) -> None:
        """Fetch the texts of a complete folder, its marker last, unless they are here.

        Local files of an artefact that was made anew since are removed.
        """
        entries = {Path(entry.name).name: entry for entry in self._there[self.name(folder)]}
        local, time = folder / marker, entries[marker].mtime
        if local.is_file() and abs(local.stat().st_mtime - time) < _SAME_SECONDS:
            return
        texts = [name for name in entries if name.endswith(_TEXTS) and name != marker]
        for path in folder.glob("[!.]*"):
            if path.is_file() and path.name not in texts and not _WITH_CHECKSUM.search(path.name):
                path.unlink(missing_ok=True)
        _side_by_side(self._fetch, [entries[name] for name in texts])
        self._fetch(entries[marker])

    def pull(self, path: Path) -> None:
        """Fetch a file that never changes, unless it is here or nowhere."""
        if path.is_file():
            return
        with self.lock(self.name(path)), contextlib.suppress(FileNotFoundError):
            if not path.is_file():  # not fetched by another process meanwhile
                self.remote.fetch(self.name(path), path)
                stat = path.stat()
                self._sent[self.name(path)] = (stat.st_size, stat.st_mtime_ns)

    def pull_all(self, folder: Path, beginning: str) -> None:
        """Fetch the files of a folder whose names begin so, and which never change."""
        paths = (self.root / entry.name for entry in self.remote.entries(self.name(folder)))
        paths = (path for path in paths if path.parent == folder)
        _side_by_side(self.pull, [path for path in paths if path.name.startswith(beginning)])

    def renew(self, path: Path) -> None:
        """Fetch a file that another node may have changed, or remove it here as there."""
        try:
            self.remote.fetch(self.name(path), path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)

    def read(self, path: Path) -> bytes | None:
        """Content of a remote file, without a copy here; None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self.remote.read(self.name(path))
        return None

    def renew_all(self, folder: Path) -> None:
        """Fetch all files of a folder, and remove those that are not there any more."""
        entries = self.remote.entries(self.name(folder))
        _side_by_side(self._fetch, entries)
        names = {entry.name for entry in entries}
        for path in folder.glob("[!.]*"):
            if path.is_file() and self.name(path) not in names:
                path.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with its files, from the remote store."""
        name = self.name(path)

        def stays(other: str) -> bool:
            return other != name and not other.startswith(f"{name}/")

        self._here = {other for other in self._here if stays(other)}
        self._there = {other: files for other, files in self._there.items() if stays(other)}
        self._sent = {other: state for other, state in self._sent.items() if stays(other)}
        if self.remote.entry(name) is not None:
            self.remote.delete(name)
            return
        _side_by_side(self.remote.delete, [entry.name for entry in self.remote.entries(name)])

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Context manager: held by one process of this node at a time; freed when it ends."""
        path = self.root / ".locks" / hashlib.sha256(name.encode()).hexdigest()[:20]
        make_folder(path.parent)
        with lasting(path):
            file = path.open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, entry: Entry) -> None:
        """Fetch a file and its time, by which artefacts are listed."""
        path = self.root / entry.name
        with contextlib.suppress(FileNotFoundError):
            self.remote.fetch(entry.name, path)
            os.utime(path, (entry.mtime, entry.mtime))


def _side_by_side(call: Callable[[_Item], object], items: Sequence[_Item]) -> None:
    """Call for each item, several at a time: each call waits for the network."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(call, items):
            pass
