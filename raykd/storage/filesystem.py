"""A folder on another machine, by its URL, through pyarrow's file systems.

    s3://bucket/prefix?region=us-east-1      S3; credentials as AWS's own tools find them
    s3://bucket/prefix?endpoint_override=http://host:9000    whatever speaks S3
    gs://bucket/prefix                       Google Cloud Storage; its default credentials
    file:///mnt/share/prefix                 a mounted folder

Names are relative to the URL, with slashes. A file appears whole or not at all.
"""

import contextlib
import hashlib
import logging
import math
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from raykd.core.errors import ConfigError, Damaged, NoRoom, Unreachable
from raykd.core.safe_names import check_below, is_below
from raykd.storage.atomic import FULL, lasting, make_folder

ATTEMPTS = 3
_PAUSE = 0.5  # seconds before the second attempt; twice as long before each further one
_BLOCK, _OPEN = 1 << 23, 32  # bytes that are copied at a time; files that `read_at` keeps open
_GS_SECONDS = 60  # for which Google's client tries again by itself; 15 minutes if it is not told
SAY_SECONDS = 5.0  # after which a request, or a copy, is said to be waited for
_LOOK_SECONDS, _AGAIN_SECONDS = 1.0, 30.0  # between two looks at the clock; between two lines
_LOG = logging.getLogger("raykd")  # which writes warnings to standard error
_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs", "viewfs", "abfs", "abfss")  # that pyarrow reads
# Parts of errors' texts.
_REFUSED = ("access_denied", "invalid_access_key", "signature", "credential", "access token")
_NO_BUCKET = ("no_such_bucket",)
_NO_NETWORK = ("network_connection", "could not connect", "resolve host", "curl error", "timeout")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Entry:
    """A file that lies there."""

    name: str
    bytes: int
    mtime: float  # seconds since 1970


def is_url(text: str) -> bool:
    """True if a text is a URL, and no path."""
    return "://" in text


class Remote:
    """The files below a URL. Connects when it is first asked; may be pickled and forked."""

    def __init__(self, url: str) -> None:
        """Raises `ConfigError` where the URL names no place."""
        parts = _parsed(url)
        self.url = url
        # For messages: without a query, and without credentials, which a URL may carry.
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._scheme = parts.scheme
        self._lock = threading.Lock()
        self._reached: tuple[Any, str] | None = None
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type["Remote"], tuple[str]]:
        return Remote, (self.url,)

    def entries(self, folder: str = "") -> list[Entry]:
        """The files in a folder and in those below it, by name; none where it is not there."""
        from pyarrow import fs

        files, path = self.at(folder)
        chosen = fs.FileSelector(path, allow_not_found=True, recursive=True)
        start = len(self.at("")[1]) + 1
        found = [
            Entry(info.path[start:], info.size, info.mtime_ns / 1e9)
            for info in self._asked(folder, lambda: files.get_file_info(chosen))
            if info.is_file and info.base_name[0] != "." and is_below(info.path[start:])
        ]
        return sorted(found, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry | None:
        """One file; None where it is not there."""
        files, path = self.at(name)
        info = self._asked(name, lambda: files.get_file_info(path))
        return Entry(name, info.size, info.mtime_ns / 1e9) if info.is_file else None

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError`."""
        files, path = self.at(name)

        def read() -> bytes:
            with files.open_input_stream(path) as stream:
                return stream.read()

        return self._asked(name, read)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes of a file, fewer where it ends. Raises `FileNotFoundError`.

        Files that were read last stay open, so they are taken not to change.
        """
        return self._asked(name, lambda: self._opened(name).read_at(length, offset))

    def fetch(self, name: str, path: Path, checksum: str = "") -> None:
        """Copy a file to a local path, atomically.

        With a `checksum`, the first digits of its SHA-256, `Damaged` is raised where the bytes are
        others, twice. Raises `FileNotFoundError`, and `NoRoom` where the local disk is full.
        """
        make_folder(path.parent)
        try:
            self._asked(name, lambda: self._copy(name, path, checksum))
        except Damaged:  # perhaps on the way
            self._asked(name, lambda: self._copy(name, path, checksum))

    def push(self, path: Path, name: str) -> Entry:
        """Copy a local file there; the entry that it has then."""
        from pyarrow import fs

        files, target = self.at(name)
        place, size = PurePosixPath(target), path.stat().st_size
        aside = str(place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp"))
        mounted = self._scheme == "file"  # others count an upload when it is complete
        first = aside if mounted else target

        def put() -> Entry:
            if mounted:
                files.create_dir(str(place.parent), recursive=True)
            try:
                # No interrupt comes between the first byte and the last: pyarrow ends a stream
                # that is left early with what it has.
                fs.copy_files(str(path), first, fs.LocalFileSystem(), files, chunk_size=_BLOCK)
                found = files.get_file_info(first)
                if found.size != size:
                    raise OSError(f"{found.size} bytes arrived of {size}")
                if mounted:
                    files.move(aside, target)
                return Entry(name, size, found.mtime_ns / 1e9)
            finally:
                if mounted:
                    Path(aside).unlink(missing_ok=True)

        return self._asked(name, put)

    def delete(self, name: str) -> None:
        """Remove a file, where it is there."""
        files, path = self.at(name)
        with contextlib.suppress(FileNotFoundError):
            self._asked(name, lambda: files.delete_file(path))

    def _copy(self, name: str, path: Path, checksum: str) -> None:
        """One attempt of `fetch`."""
        files, source = self.at(name)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        digest, done = hashlib.sha256(), 0
        try:
            with lasting(path):  # what goes wrong here is not the remote place's fault
                file = temporary.open("wb")
            with file, files.open_input_file(source) as stream:
                size = stream.size()
                while block := stream.read(_BLOCK):
                    if checksum:
                        digest.update(block)
                    with lasting(path):
                        file.write(block)
                    done += len(block)
                file.flush()
                os.fsync(file.fileno())
            if done != size:
                raise OSError(f"{done} bytes came of {size}")
            if checksum and not digest.hexdigest().startswith(checksum):
                raise Damaged(f"{self.shown}/{name}: its checksum is not {checksum}")
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _opened(self, name: str) -> Any:
        files, path = self.at(name)
        with self._lock:
            file = self._files.pop(name, None)
        file = file or files.open_input_file(path)
        with self._lock:
            self._files[name] = file  # the last that goes
            while len(self._files) > _OPEN:
                self._files.popitem(last=False)
        return file

    def at(self, name: str) -> tuple[Any, str]:
        """The file system of pyarrow's, and the path of a name on it. Raises `Damaged`."""
        check_below(name, self.shown)
        with self._lock:
            if self._reached is None:
                self._reached = self._connect()
        return self._reached[0], f"{self._reached[1]}/{name}".rstrip("/")

    def _connect(self) -> tuple[Any, str]:
        """The file system and the root's path. Raises `Unreachable` where there is no bucket."""
        import pyarrow as pa
        from pyarrow import fs

        url = self.url
        if self._scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:
            url += f"{'&' if '?' in url else '?'}retry_limit_seconds={_GS_SECONDS}"
        if self._scheme == "s3" and "allow_delayed_open" not in url:
            # A small file is one request then, and not an upload in parts of three.
            url += f"{'&' if '?' in url else '?'}allow_delayed_open=true"
        try:
            files, root = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self.shown}: not a place that can be used ({error})") from error
        if self._scheme != "file":
            bucket = root.partition("/")[0]
            info = self._asked("", lambda: files.get_file_info(bucket), attempts=1)
            if info.type == fs.FileType.NotFound:
                raise Unreachable(f"{self.shown}: there is no bucket {bucket!r}; make it first")
        return files, root.rstrip("/")

    def _asked(self, name: str, call: Callable[[], _Answer], attempts: int = ATTEMPTS) -> _Answer:
        """The answer, asked for again where that may help. Raises `Unreachable`, `NoRoom`."""
        for attempt in range(1, attempts + 1):
            try:
                with _waits(f"{self.shown}/{name}".rstrip("/")):
                    return call()
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.shown}/{name}: there is no such file") from None
            except OSError as error:
                what = f"{self.shown}/{name}".rstrip("/")
                if error.errno in FULL:
                    raise NoRoom(f"{what}: the disk is full ({error})") from error
                if attempt == attempts or _is_in(error, _REFUSED + _NO_BUCKET):
                    raise Unreachable(f"{what}: {_said(error)} ({error})") from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


def _parsed(url: str) -> SplitResult:
    """The parts of a URL. Raises `ConfigError` where it names no place that could be reached."""
    shown = repr(url.partition("?")[0].rpartition("@")[2][:80])
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{shown}: not a URL ({error})") from error
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in ("s3", "gs", "file"))
        raise ConfigError(f"{shown}: not a place that can be used; there are {known} and folders")
    rooted = parts.scheme in ("file", "hdfs", "viewfs")
    if "\0" in url or not (parts.path.strip("/") if rooted else parts.netloc):
        example = "/folder" if rooted else "bucket/folder"
        raise ConfigError(
            f"{shown}: not a place that can be used; expected such as {parts.scheme}://{example}"
        )
    return parts


class _Watch:
    """Says, now and then, for what this process has been waiting."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._since: dict[object, tuple[float, str]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        """A region in which `what` is waited for."""
        key = object()
        with self._lock:
            self._since[key] = (time.monotonic(), what)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._since[key]

    def _look(self) -> None:
        """Look at what is waited for until it is nothing."""
        said = -math.inf
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._lock:
                if not self._since:
                    self._thread = None
                    return
                since, what = min(self._since.values())
            now = time.monotonic()
            if now - since >= SAY_SECONDS and now - said >= _AGAIN_SECONDS:
                said = now
                _LOG.warning("waiting for %s, %d s so far", what, now - since)


_watch = _Watch()


def _waits(what: str) -> contextlib.AbstractContextManager[None]:
    """A region in which a place elsewhere is waited for, which is said after some seconds."""
    global _watch  # noqa: PLW0603 - a forked process has no thread of its parent's
    if _watch.process != os.getpid():
        _watch = _Watch()
    return _watch.over(what)


def _is_in(error: OSError, words: tuple[str, ...]) -> bool:
    return any(word in str(error).lower() for word in words)


def _said(error: OSError) -> str:
    """Meaning of an error, with the remedy."""
    if _is_in(error, _NO_BUCKET):
        return "there is no such bucket; make it first, or correct the URL"
    if _is_in(error, _REFUSED):
        return (
            "the credentials were refused; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE (Google: GOOGLE_APPLICATION_CREDENTIALS) on every node"
        )
    if _is_in(error, _NO_NETWORK):
        return "nobody answers; check the network and the URL's endpoint_override and region"
    return "it cannot be reached"
