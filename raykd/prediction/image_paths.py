"""Image files that paths, folders and patterns stand for."""

import glob
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from raykd.core.errors import DataError
from raykd.core.safe_names import printable
from raykd.data.sources.files import Files
from raykd.data.sources.formats import SUFFIXES, is_image
from raykd.prediction.preprocess import Picture
from raykd.storage.filesystem import is_url


def image_paths(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """The image files that some paths stand for, each once; images of Pillow's stay as they are.

    A file is taken whatever its name is. A folder stands for the images in it and in its folders,
    by their suffixes and without hidden ones; a pattern (*, ?, [], ** for any folders) for the
    images and folders that match. Raises `DataError`, naming the path, where there is none.
    """
    if isinstance(pictures, str | Path | Image.Image):
        pictures = [pictures]
    files: dict[str, Path] = {}
    expanded: list[Picture] = []
    for picture in pictures:
        if isinstance(picture, Image.Image):
            expanded.append(picture)
            continue
        for path in _files(str(picture)):
            if str(path) not in files:
                files[str(path)] = path
                expanded.append(path)
    return expanded


def _files(name: str) -> list[Path]:
    """The image files that one path or pattern stands for, in the order of folders and names."""
    if is_url(name):
        raise DataError(
            f"{printable(name)}: images at a URL are not read here; give files of this machine"
        )
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _not_empty(name, _inside(path))
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - from any root
    if not matches:
        what = "nothing matches this pattern" if glob.has_magic(name) else "there is no such path"
        raise DataError(f"{printable(name)}: {what}; give an image, a folder or a pattern of them")
    images: list[Path] = []
    for match in matches:
        images += _inside(match) if match.is_dir() else [match] if is_image(match.name) else []
    return _not_empty(name, images)


def _inside(folder: Path) -> list[Path]:
    """The images in a folder and in its folders."""
    return [folder / entry.name for entry in Files(str(folder)).walk() if is_image(entry.name)]


def _not_empty(name: str, images: list[Path]) -> list[Path]:
    if not images:
        raise DataError(
            f"{printable(name)}: there is no image; their names end in {', '.join(SUFFIXES)}"
        )
    return images
