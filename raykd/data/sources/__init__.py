"""Sources of images: the table of datasets, and readers of files in each layout.

The table imports a reader when it is first used, so that recipes can name datasets without loading
any decoder.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.core.errors import DataError
from raykd.core.registry import Registry

if TYPE_CHECKING:
    from raykd.data.sources.splits import Dataset

Reader = Callable[..., "Dataset"]  # called with a path, and `labels` where images lie in files
Triple = tuple[float, float, float]  # red, green, blue, of pixels in 0 to 1
PAIRS, RANKINGS = "pairs", "rankings"
LISTS = {PAIRS: "faces", RANKINGS: "retrieval"}  # the tasks that are judged by such a list
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the field's, for photographs


@dataclass(frozen=True)
class Source:
    """A dataset by name: a line about it, its reader, and the mean and std of its pixels.

    `reader` is a function, or the name of one of a module of this package, `module:function`, which
    returns a `splits.Dataset`. It takes a path; where `in_files`, it takes the path or URL as a
    text, and `labels`: where False, it needs none and returns a dataset without class names.
    """

    title: str
    reader: str | Reader
    normalisation: tuple[Triple, Triple] = IMAGENET
    in_files: bool = False  # a path or URL must be given

    def __call__(self, root: str | Path | None, *, labels: bool = True) -> "Dataset":
        """Encoded images at a path or URL, with or without labels.

        Raises `DataError` naming file or row.
        """
        from raykd.data.sources.splits import UNLABELLED, without_labels  # loads Arrow

        dataset = self._read(root, labels)
        if not labels:
            return without_labels(dataset)
        if not dataset.names:
            raise DataError(f"{root}: these images were packed without labels; {UNLABELLED}")
        return dataset

    def _read(self, root: str | Path | None, labels: bool) -> "Dataset":
        """The dataset as its reader returns it."""
        from raykd.storage.filesystem import is_url  # loads Arrow

        name = next(name for name, source in SOURCES.items() if source is self)
        if root is not None:
            check_exists(root)
        elif self.in_files:
            raise DataError(f"a dataset of kind {name!r} lies in files; say where: data.path=PATH")
        read = self.reader
        if isinstance(read, str):
            module, _, function = read.partition(":")
            read = getattr(import_module(f"raykd.data.sources.{module}"), function)
        if self.in_files:
            return read(str(root), labels)
        if root is None:
            return read(None)
        if is_url(str(root)):
            raise DataError(
                f"{root}: {name!r} is read from files of this machine; at a URL there can be "
                f"{', '.join(sorted(key for key, source in SOURCES.items() if source.in_files))}"
            )
        return read(Path(root))


def _read_torchvision(
    name: str, train: bool | str | None, test: bool | str | None, path: Path | None
) -> "Dataset":
    """See `torchvision_sets.read_torchvision`, which loads Arrow."""
    from raykd.data.sources.torchvision_sets import read_torchvision

    return read_torchvision(name, train, test, path)


def check_exists(location: str | Path) -> None:
    """Raise `DataError` where nothing is at a path of this machine.

    A pattern with braces stands for many paths, each of which is looked for by its reader.
    """
    from raykd.storage.filesystem import is_url  # loads Arrow

    if not (is_url(str(location)) or "{" in str(location) or Path(location).expanduser().exists()):
        raise DataError(f"{location}: there is no such file or folder (data.path)")


# Mean and std: CIFAR-10 as in SAKD's and KD_Lib's code, CIFAR-100 as in RepDistiller's and
# mdistiller's, Tiny-ImageNet as in mdistiller's (SAKD normalises it with CIFAR-10's), CINIC-10 from
# its README, https://github.com/BayesWatch/cinic-10; those of digits are measured over all 1,797
# images.
_CINIC10 = ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))
SOURCES: Registry[Source] = Registry("dataset")
for _name, _source in {
    "digits": Source(
        "1,797 real handwritten digits of 8 x 8 pixels (UCI), from scikit-learn; no test split.",
        "published:digits",
        ((0.3053, 0.3053, 0.3053), (0.3759, 0.3759, 0.3759)),
    ),
    "cifar10": Source(
        "CIFAR-10: downloaded by torchvision, or image tables at `path`.",
        "published:cifar10",
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "cifar100": Source(
        "CIFAR-100 with its fine labels: downloaded by torchvision, or image tables at `path`.",
        "published:cifar100",
        ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
    "tiny_imagenet": Source(
        "Tiny-ImageNet, 200 classes: downloaded, or as distributed or image tables at `path`.",
        "published:tiny_imagenet",
        ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    ),
    "cinic10": Source(
        "CINIC-10, to train on `train`: downloaded, or as distributed or image tables at `path`.",
        "published:cinic10",
        _CINIC10,
    ),
    "cinic10_trainvalid": Source(
        "CINIC-10, to train on `train` and `valid`: downloaded, or as distributed at `path`.",
        "published:cinic10_trainvalid",
        _CINIC10,
    ),
    "folder": Source(
        "Image files in one folder per class, at the top, in `train` and `test` (or `val`), in "
        "`gallery` and `query`, in `probes` beside `distractors`; without labels in any folders.",
        "folders:read_folder",
        in_files=True,
    ),
    "table": Source(
        "Parquet, Arrow or Feather tables with a column of encoded images and, if any, of labels.",
        "tables:read_tables",
        in_files=True,
    ),
    "hf": Source(
        "A folder that save_to_disk of Hugging Face's `datasets` wrote, or hf:owner/name on the "
        "Hub; columns are found by their features.",
        "hugging_face:read_saved",
        in_files=True,
    ),
    "webdataset": Source(
        "Tar shards of images and, if any, labels: a folder, one, or a pattern such as "
        "train-{000..146}.tar.",
        "tars:read_webdataset",
        in_files=True,
    ),
    PAIRS: Source(
        "Pairs of faces, for the probe of task `faces`: a list like LFW's pairs.txt, or a CSV file "
        "with two paths and `same` or `different` on each line, beside the images.",
        "pairs:read_pairs",
        in_files=True,
    ),
    RANKINGS: Source(
        "Queries, for the probe of task `retrieval`: a CSV file with a query's path, `relevant` or "
        "`junk`, and the path of an image on each line, beside the images.",
        "ranking_lists:read_rankings",
        in_files=True,
    ),
}.items():
    SOURCES.add(_name, _source)

# Title, and torchvision's arguments of the training and the test split; without them all data are
# one split. Each is read in a test from files in its layout.
for _name, (_title, _train, _test) in {
    "Country211": ("Photographs by 211 countries", "train", "test"),
    "DTD": ("Textures of 47 kinds, first partition", "train", "test"),
    "EuroSAT": ("Satellite pictures of 10 kinds of land use", None, None),
    "FGVCAircraft": ("100 variants of aircraft", "trainval", "test"),
    "FashionMNIST": ("Clothes of 10 kinds, 28 x 28 pixels, grey", True, False),
    "Flowers102": ("Flowers of 102 kinds", "train", "test"),
    "Food101": ("Dishes of 101 kinds", "train", "test"),
    "GTSRB": ("German traffic signs of 43 kinds", "train", "test"),
    "Imagenette": ("10 easy classes of ImageNet", "train", "val"),
    "KMNIST": ("Japanese letters of 10 kinds, 28 x 28 pixels, grey", True, False),
    "MNIST": ("Handwritten digits, 28 x 28 pixels, grey", True, False),
    "OxfordIIITPet": ("Cats and dogs of 37 breeds", "trainval", "test"),
    "RenderedSST2": ("Sentences as pictures, positive or negative", "train", "test"),
    "STL10": ("10 classes, 96 x 96 pixels", "train", "test"),
    "SUN397": ("Scenes of 397 kinds", None, None),
    "SVHN": ("House numbers, 32 x 32 pixels", "train", "test"),
}.items():
    _reader = functools.partial(_read_torchvision, _name, _train, _test)
    _title += ": downloaded by torchvision, or at `path`."
    SOURCES.add(f"torchvision/{_name}", Source(_title, _reader))
