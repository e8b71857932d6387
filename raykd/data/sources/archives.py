"""Datasets distributed as one archive: located, unpacked, or downloaded first."""

import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from raykd.core.errors import DataError


@dataclass(frozen=True)
class Archive:
    """The file that a dataset is distributed as. `marker` is a path that only its folder has."""

    title: str
    file: str
    md5: str
    urls: tuple[str, ...]  # tried one after the other
    folder: str  # name of the unpacked folder
    marker: str


def downloads() -> Path:
    """The folder of datasets that download themselves: $RAYKD_DATA, or ~/.cache/raykd."""
    return Path(os.environ.get("RAYKD_DATA", "~/.cache/raykd")).expanduser()


def has_archive(archive: Archive, path: Path) -> bool:
    """True if `path` is the archive, its unpacked folder, or the folder of one of them."""
    names = (archive.marker, archive.folder, archive.file)
    is_file = path.name == archive.file and path.is_file()
    return is_file or any((path / name).exists() for name in names)


def archive_folder(archive: Archive, path: Path | None) -> Path:
    """The folder of an archive's files.

    An archive at `path` is unpacked beside itself. Without a path, the folder is in `downloads()`,
    into which the archive is downloaded once. If `path` has neither the folder nor the archive,
    this is `path` itself, and the reader reports what is missing. Raises `DataError` for an
    archive that cannot be downloaded or unpacked, or has another MD5.
    """
    root = downloads() if path is None else path
    if root.name == archive.file:
        root = root.parent
    folder, file = root / archive.folder, root / archive.file
    if folder.is_dir():
        return folder
    if path is None:
        _download(archive, root)
    elif not file.is_file():
        return root
    _unpack(archive, file, folder)
    return folder


def _download(archive: Archive, root: Path) -> None:
    """Bring the archive into `root`, unless the folder has it."""
    from torchvision.datasets.utils import download_url  # takes seconds to import

    reasons = []
    for url in archive.urls:
        try:
            # Checks the MD5 of an existing file first, and of the downloaded one.
            download_url(url, str(root), archive.file, archive.md5)
            return
        except (OSError, RuntimeError, HTTPException) as error:
            reasons.append(f"{url}: {error}")
    raise DataError(
        f"{archive.title} is not in {root} and could not be downloaded ({'; '.join(reasons)}); "
        f"copy {archive.file} there, or give data.path=FOLDER with it or with its Parquet files"
    )


def _unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Unpack the archive's file to `folder`, which appears only once it is whole."""
    from torchvision.datasets.utils import check_md5, extract_archive

    try:
        if not check_md5(file, archive.md5):
            raise DataError(
                f"{file}: expected an archive with the MD5 {archive.md5}; this one was cut short "
                "or is another; replace it, or give data.path=FOLDER with its unpacked files"
            )
        with TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as temporary:
            content = Path(temporary, archive.folder)
            extract_archive(str(file), str(content))
            inner = content / archive.folder  # an archive that has its folder in it
            (inner if inner.is_dir() else content).rename(folder)
    except OSError as error:
        raise DataError(f"{file}: cannot be unpacked ({error})") from error
