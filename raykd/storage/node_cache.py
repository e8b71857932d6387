"""A node's own copy of a store that lies elsewhere.

What is made on a node is written here first and pushed; what other nodes made is brought when it
is asked for. Processes of one node share the copy: a file appears in it whole, by its name, and
of large ones each is brought by one process while the others wait.
"""

import contextlib
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

_TEXTS = (".json", ".jsonl")  # what is brought with an artefact; larger files come one by one
_OWN_NAME = re.compile(r"-[0-9a-f]{24}\.arrow$")  # that changes with the file: it has the checksum
_AT_ONCE = 8  # files that are brought at a time
_Thing = TypeVar("_Thing")
_SAME_SECONDS = 1e-3  # two times that are further apart are not equal


def place_of(remote: Remote) -> Path:
    """Folder of a node's copy of a remote store: below $RAYKD_LOCAL or ~/.cache."""
    given = os.environ.get("RAYKD_LOCAL")
    base = Path(given) if given else Path("~/.cache/raykd/stores")
    # What the query says is part of the place: the same bucket's name on another server.
    key = f"{remote.shown}?{urlsplit(remote.url).query}"
    words = "-".join(remote.shown.partition("://")[2].strip("/").split("/"))
    name = f"{words[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    return base.expanduser().resolve() / name


class Mirror:
    """The files of a remote store, by the local paths that they have on this node."""

    def __init__(self, remote: Remote, root: Path) -> None:
        self.remote = remote
        self.root = root
        self._sent: dict[str, tuple[int, int]] = {}  # local size and time of what is there, too
        self._here: set[str] = set()  # folders whose marker and texts are here
        self._there: dict[str, list[Entry]] = {}  # the files of complete folders, once listed
        self._listed: set[str] = set()  # kinds of folders

    def name(self, path: Path) -> str:
        """The name of a local path elsewhere."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """A path as messages name it: where it lies for all nodes."""
        return f"{self.remote.shown}/{self.name(path)}"

    def push(self, path: Path, target: Path | None = None) -> Entry:
        """Put a local file there, under the name of another path if one is given."""
        name, stat = self.name(target or path), path.stat()
        entry = self.remote.push(path, name)
        self._sent[name] = (stat.st_size, stat.st_mtime_ns)
        return entry

    def share(self, folder: Path, marker: str) -> None:
        """Put a complete folder there, its marker last."""
        there = {entry.name: entry.bytes for entry in self.remote.entries(self.name(folder))}
        missing = []
        for path in sorted(folder.glob("[!.]*")):
            name, stat = self.name(path), path.stat()
            same = _OWN_NAME.search(name) and there.get(name) == stat.st_size
            known = same or self._sent.get(name) == (stat.st_size, stat.st_mtime_ns)
            if path.is_file() and path.name != marker and not known:
                missing.append(path)
        _side_by_side(self.push, missing)
        self.push_marker(folder / marker)

    def push_marker(self, path: Path) -> None:
        """Put a marker there, which then has the same time here, to be known by."""
        entry = self.push(path)
        os.utime(path, (entry.mtime, entry.mtime))
        self._here.add(self.name(path.parent))

    def whole(self, folder: Path, marker: str) -> bool:
        """True if a folder is complete in the remote store; its texts are then fetched."""
        name = self.name(folder)
        if name in self._here:
            return True
        kind = name.partition("/")[0]
        if kind not in self._listed:
            self.survey(kind, marker)
        if name not in self._there:  # perhaps since then
            if self.remote.entry(f"{name}/{marker}") is None:
                return False
            self._there[name] = self.remote.entries(name)
        self._bring(folder, marker)
        self._here.add(name)
        return True

    def first_marker(self, kind: str, marker: str) -> Path | None:
        """The marker of one complete folder of a kind, by its path here; None where none is."""
        if kind not in self._listed:
            self.survey(kind, marker)
        names = (name for name in self._there if name.startswith(f"{kind}/"))
        return next((self.root / name / marker for name in names), None)

    def survey(self, kind: str, marker: str) -> list[Path]:
        """The folders of a kind that are complete there, by their paths here."""
        folders: dict[str, list[Entry]] = {}
        for entry in self.remote.entries(kind):
            _, _, rest = entry.name.partition("/")
            folders.setdefault(f"{kind}/{rest.partition('/')[0]}", []).append(entry)
        complete = {n: e for n, e in folders.items() if any(x.name == f"{n}/{marker}" for x in e)}
        self._there |= complete
        self._listed.add(kind)
        return [self.root / name for name in complete]

    def finished(self, kind: str, marker: str) -> list[Path]:
        """The complete folders of a kind, with their texts here."""
        folders = self.survey(kind, marker)
        _side_by_side(lambda folder: self._bring(folder, marker), folders)
        return folders

    def _bring(self, folder: Path, marker: str) -> None:
        """Copy the texts of a complete folder here, its marker last, unless they are here.

        What is left here of an artefact that has been made anew since is removed.
        """
        entries = {Path(entry.name).name: entry for entry in self._there[self.name(folder)]}
        mine, time = folder / marker, entries[marker].mtime
        if mine.is_file() and abs(mine.stat().st_mtime - time) < _SAME_SECONDS:
            return
        texts = [name for name in entries if name.endswith(_TEXTS) and name != marker]
        for path in folder.glob("[!.]*"):
            if path.is_file() and path.name not in texts and not _OWN_NAME.search(path.name):
                path.unlink(missing_ok=True)
        _side_by_side(self._fetch, [entries[name] for name in texts])
        self._fetch(entries[marker])

    def pull(self, path: Path) -> None:
        """Bring a file that never changes, unless it is here or nowhere."""
        if path.is_file():
            return
        with self.lock(self.name(path)), contextlib.suppress(FileNotFoundError):
            if not path.is_file():  # not fetched by another process meanwhile
                self.remote.fetch(self.name(path), path)
                stat = path.stat()
                self._sent[self.name(path)] = (stat.st_size, stat.st_mtime_ns)

    def pull_all(self, folder: Path, beginning: str) -> None:
        """Bring the files of a folder whose names begin so, and which never change."""
        paths = (self.root / entry.name for entry in self.remote.entries(self.name(folder)))
        wanted = [p for p in paths if p.parent == folder and p.name.startswith(beginning)]
        _side_by_side(self.pull, wanted)

    def renew(self, path: Path) -> None:
        """Have a file here as it is there: another node may have changed or removed it."""
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
        """Have the texts of a folder here as they are there."""
        entries = self.remote.entries(self.name(folder))
        _side_by_side(self._fetch, entries)
        names = {entry.name for entry in entries}
        for path in folder.glob("[!.]*"):
            if path.is_file() and self.name(path) not in names:
                path.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with what is in it, there."""
        name = self.name(path)
        for known in (self._here, self._there, self._sent):
            for other in [n for n in known if n == name or n.startswith(f"{name}/")]:
                known.pop(other) if isinstance(known, dict) else known.discard(other)
        if self.remote.entry(name) is not None:
            self.remote.delete(name)
            return
        _side_by_side(self.remote.delete, [entry.name for entry in self.remote.entries(name)])

    @contextlib.contextmanager
    def lock(self, what: str) -> Iterator[None]:
        """A region that one process of this node is in at a time; the system frees it with it."""
        import fcntl

        place = self.root / ".locks" / hashlib.sha256(what.encode()).hexdigest()[:20]
        make_folder(place.parent)
        with lasting(place):
            file = place.open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, entry: Entry) -> None:
        """Bring a file, with the time that it has there, by which artefacts are listed."""
        path = self.root / entry.name
        with contextlib.suppress(FileNotFoundError):
            self.remote.fetch(entry.name, path)
            os.utime(path, (entry.mtime, entry.mtime))


def _side_by_side(call: Callable[[_Thing], object], things: Sequence[_Thing]) -> None:
    """Make a call for each of some things, several at a time: each waits for the network."""
    if len(things) < 2:
        for thing in things:
            call(thing)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(call, things):
            pass
