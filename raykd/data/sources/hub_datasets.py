"""Datasets of the Hugging Face Hub: `hf:owner/name`, `hf:owner/name/config`, `...@revision`.

They are downloaded by the library `datasets` (the extra `hub`) into its cache, and written as
Parquet files with the images in them to a folder of `archives.downloads()`, which is read like any
other from there on, also without a network. Nothing of a repository is executed.
"""

import re
from pathlib import Path

from raykd.core.errors import DataError
from raykd.data.sources.archives import downloads

PREFIX = "hf:"
_NAME = re.compile(
    r"hf:(?P<name>([\w-][\w.-]*/)?[\w-][\w.-]*?)(/(?P<config>[\w-][\w.+-]*))?"
    r"(@(?P<revision>[\w-][\w.-]*))?"
)


def is_on_hub(path: str | Path) -> bool:
    """True for the name of a dataset on the Hub."""
    return str(path).startswith(PREFIX)


def local(path: str | Path) -> str:
    """The folder of a dataset of the Hub, whether or not it is there; another path as it is."""
    return str(_folder(str(path))) if is_on_hub(path) else str(path)


def fetched(path: str | Path) -> str:
    """The folder of a dataset of the Hub, downloaded if it is not there; another path as it is.

    Raises `DataError`.
    """
    if not is_on_hub(path):
        return str(path)
    folder = _folder(str(path))
    if not folder.is_dir():
        _download(str(path), folder)
    return str(folder)


def _match(path: str) -> re.Match[str]:
    match = _NAME.fullmatch(path)
    if match is None:
        raise DataError(
            f"data.path: {path}: expected hf:owner/name, hf:owner/name/config or one of them with "
            "@revision"
        )
    return match


def _folder(path: str) -> Path:
    name, config, revision = _match(path).group("name", "config", "revision")
    parts = [part for part in (name.replace("/", "--"), config, revision) if part]
    return downloads() / "hf" / "@".join(parts)


def _download(path: str, folder: Path) -> None:
    """Write a dataset of the Hub to a folder, which appears once it is whole."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data.path: {path}: needs the package datasets, which is not installed; "
            "`pip install 'raykd[hub]'`, or give a folder"
        ) from None
    name, config, revision = _match(path).group("name", "config", "revision")
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        # Parquet, since Arrow files would only name the images of a folder. The library writes to
        # another folder, and renames it at the end.
        builder.download_and_prepare(str(folder), file_format="parquet")
    except Exception as error:  # the library's, huggingface_hub's, HTTP clients', the system's
        reason = "; ".join(str(error).strip().splitlines()[:3]) or type(error).__name__
        raise DataError(
            f"data.path: {path}: cannot be downloaded ({reason}); correct the name, log in with "
            "`hf auth login` where its terms must be accepted, or give data.path=FOLDER that "
            "save_to_disk wrote on another machine"
        ) from error
