"""A folder on another machine, by its URL, through pyarrow's file systems.

    s3://bucket/prefix?region=us-east-1      S3; credentials as AWS's own tools find them
    s3://bucket/prefix?endpoint_override=http://host:9000    whatever speaks S3
    gs://bucket/prefix                       Google Cloud Storage; its default credentials
    file:///mnt/share/prefix                 a mounted folder

Names are relative to the URL, with slashes. A file appears whole or not at all.
"""

import contextlib
import functools
import hashlib
import logging
import math
import os
import secrets
import threading
import time
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
_BLOCK, _OPEN = 1 << 23, 32  # bytes copied at a time; files that `read_at` keeps open
SAY_SECONDS = 5.0  # age of a request from which a warning says that it is waited for
_LOOK_SECONDS, _AGAIN_SECONDS = 1.0, 30.0  # between two looks at the clock; between two warnings
_LOG = logging.getLogger("raykd")  # writes warnings to standard error
_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs", "viewfs", "abfs", "abfss")  # pyarrow's schemes
# Options that a URL gets where it does not set them itself.
_OPTIONS = {
    "s3": "allow_delayed_open=true",  # a small file is one request, not an upload in three parts
    "gs": "retry_limit_seconds=60",  # Google's client tries again for 15 minutes by default
    "gcs": "retry_limit_seconds=60",
}


# Causes of failed requests: words of the error's text, what to say of them, and whether another
# attempt would fail, too.
_CAUSES = (
    (("no_such_bucket",), "there is no such bucket; make it first, or correct the URL", True),
    (
        ("access_denied", "invalid_access_key", "signature", "credential", "access token"),
        "the credentials were refused; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE (Google: GOOGLE_APPLICATION_CREDENTIALS) on every node",
        True,
    ),
    (
        ("network_connection", "could not connect", "resolve host", "curl error", "timeout"),
        "nobody answers; check the network and the URL's endpoint_override and region",
        False,
    ),
    (("",), "it cannot be reached", False),
)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    name: str
    bytes: int
    mtime: float  # seconds since 1970


def is_url(text: str) -> bool:
    """True if a text is a URL, not a path."""
    return "://" in text


class Remote:
    """The files below a URL. Connects at the first request; may be pickled and forked."""

    def __init__(self, url: str) -> None:
        """Raises `ConfigError` where the URL names no bucket or folder."""
        parts = _parsed(url)
        self.url = url
        # For messages: without a query, and without credentials, which a URL may carry.
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._scheme = parts.scheme
        self._opened = functools.lru_cache(_OPEN)(self._open)

    def __reduce__(self) -> tuple[type["Remote"], tuple[str]]:
        return Remote, (self.url,)

    def entries(self, folder: str = "") -> list[Entry]:
        """The files in a folder and in those below it, by name; none where it is not there."""
        from pyarrow import fs

        files, path = self.at(folder)
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        start = len(self.at("")[1]) + 1
        entries = [
            Entry(info.path[start:], info.size, info.mtime_ns / 1e9)
            for info in self._request(folder, lambda: files.get_file_info(selector))
            if info.is_file and info.base_name[0] != "." and is_below(info.path[start:])
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry | None:
        """One file; None where it is not there."""
        files, path = self.at(name)
        info = self._request(name, lambda: files.get_file_info(path))
        return Entry(name, info.size, info.mtime_ns / 1e9) if info.is_file else None

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError`."""
        files, path = self.at(name)

        def read() -> bytes:
            with files.open_input_stream(path) as stream:
                return stream.read()

        return self._request(name, read)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file from `offset` on, fewer than `length` at its end.

        The files read last stay open, so they must not change. Raises `FileNotFoundError`.
        """
        return self._request(name, lambda: self._opened(name).read_at(length, offset))

    def fetch(self, name: str, path: Path, checksum: str = "") -> None:
        """Copy a file to a local path, atomically.

        `checksum`: the first digits of its SHA-256. Raises `Damaged` where a second copy does not
        match it either, `FileNotFoundError`, and `NoRoom` where the local disk is full.
        """
        make_folder(path.parent)
        try:
            self._request(name, lambda: self._copy(name, path, checksum))
        except Damaged:  # perhaps in transit
            self._request(name, lambda: self._copy(name, path, checksum))

    def push(self, path: Path, name: str) -> Entry:
        """Upload a local file; returns its entry."""
        from pyarrow import fs

        files, target = self.at(name)
        path_there, size = PurePosixPath(target), path.stat().st_size
        temporary = str(path_there.with_name(f".{path_there.name}.{secrets.token_hex(4)}.tmp"))
        mounted = self._scheme == "file"  # elsewhere, an upload appears when it is complete
        first = temporary if mounted else target

        def upload() -> Entry:
            if mounted:
                files.create_dir(str(path_there.parent), recursive=True)
            try:
                # No interrupt comes between the first byte and the last: pyarrow ends a stream
                # that is left early with what it has.
                fs.copy_files(str(path), first, fs.LocalFileSystem(), files, chunk_size=_BLOCK)
                info = files.get_file_info(first)
                if info.size != size:
                    raise OSError(f"{info.size} bytes arrived of {size}")
                if mounted:
                    files.move(temporary, target)
                return Entry(name, size, info.mtime_ns / 1e9)
            finally:
                if mounted:
                    Path(temporary).unlink(missing_ok=True)

        return self._request(name, upload)

    def delete(self, name: str) -> None:
        """Remove a file, where it is there."""
        files, path = self.at(name)
        with contextlib.suppress(FileNotFoundError):
            self._request(name, lambda: files.delete_file(path))

    def _copy(self, name: str, path: Path, checksum: str) -> None:
        """One attempt of `fetch`."""
        files, source = self.at(name)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        digest, done = hashlib.sha256(), 0
        try:
            with lasting(path):  # reports errors of the local disk as such
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

    def _open(self, name: str) -> Any:
        files, path = self.at(name)
        return files.open_input_file(path)

    def at(self, name: str) -> tuple[Any, str]:
        """The pyarrow file system, and the path of a name on it. Raises `Damaged`."""
        check_below(name, self.shown)
        files, root = self._root
        return files, f"{root}/{name}".rstrip("/")

    @functools.cached_property
    def _root(self) -> tuple[Any, str]:
        """The file system and the root's path. Raises `Unreachable` where there is no bucket."""
        import pyarrow as pa
        from pyarrow import fs

        url, option = self.url, _OPTIONS.get(self._scheme, "")
        if option and option.partition("=")[0] not in url:
            url += ("&" if "?" in url else "?") + option
        try:
            files, root = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self.shown}: not a place that can be used ({error})") from error
        if self._scheme != "file":
            bucket = root.partition("/")[0]
            info = self._request("", lambda: files.get_file_info(bucket), attempts=1)
            if info.type == fs.FileType.NotFound:
                raise Unreachable(f"{self.shown}: there is no bucket {bucket!r}; make it first")
        return files, root.rstrip("/")

    def _request(self, name: str, call: Callable[[], _Answer], attempts: int = ATTEMPTS) -> _Answer:
        """The answer of `call`, tried again where that may help.

        Raises `Unreachable`, `NoRoom` and `FileNotFoundError`, which name the file.
        """
        shown = f"{self.shown}/{name}".rstrip("/")
        for attempt in range(1, attempts + 1):
            try:
                with _reported(shown):
                    return call()
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.shown}/{name}: there is no such file") from None
            except OSError as error:
                if error.errno in FULL:
                    raise NoRoom(f"{shown}: the disk is full ({error})") from error
                text = str(error).lower()
                cause, final = next(
                    (cause, final)
                    for words, cause, final in _CAUSES
                    if any(word in text for word in words)
                )
                if attempt == attempts or final:
                    raise Unreachable(f"{shown}: {cause} ({error})") from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


def _parsed(url: str) -> SplitResult:
    """The parts of a URL. Raises `ConfigError` where it names no bucket or folder."""
    shown = repr(url.partition("?")[0].rpartition("@")[2][:80])
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{shown}: not a URL ({error})") from error
    if parts.scheme not in _SCHEMES:
        raise ConfigError(
            f"{shown}: not a place that can be used; there are s3://, gs://, file:// and folders"
        )
    rooted = parts.scheme in ("file", "hdfs", "viewfs")
    if "\0" in url or not (parts.path.strip("/") if rooted else parts.netloc):
        example = "/folder" if rooted else "bucket/folder"
        raise ConfigError(
            f"{shown}: not a place that can be used; expected such as {parts.scheme}://{example}"
        )
    return parts


_requests: dict[object, tuple[float, str]] = {}  # under way: start (time.monotonic), name
_process = 0  # the process whose thread reports them


@contextlib.contextmanager
def _reported(shown: str) -> Iterator[None]:
    """Context manager: a thread logs a warning where the request takes long."""
    global _process  # noqa: PLW0603 - a forked process has no thread of its parent's
    if _process != os.getpid():
        _process = os.getpid()
        _requests.clear()
        threading.Thread(target=_report, daemon=True).start()
    key = object()
    _requests[key] = time.monotonic(), shown
    try:
        yield
    finally:
        _requests.pop(key, None)


def _report() -> None:
    """Log the oldest request now and then; loop of a thread."""
    last = -math.inf
    while True:
        time.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        since, shown = min(_requests.copy().values(), default=(now, ""))
        if now - since >= SAY_SECONDS and now - last >= _AGAIN_SECONDS:
            last = now
            _LOG.warning("waiting for %s, %d s so far", shown, now - since)
