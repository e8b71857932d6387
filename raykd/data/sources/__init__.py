"""Where images come from: the table of datasets, and readers of files in each layout.

The table imports a reader when it is first used, so that recipes can name datasets without loading
any decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.core.registry import Registry

if TYPE_CHECKING:
    from raykd.data.sources.raw_split import Found

Triple = tuple[float, float, float]  # red, green, blue, of pixels in 0 to 1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the field's, for photographs


@dataclass(frozen=True)
class Source:
    """A dataset by name: a line about it, its reader, and the mean and std of its pixels.

    `reader` is a function of a module of this package, written `module:function`.
    """

    title: str
    reader: str
    normalisation: tuple[Triple, Triple] = IMAGENET

    def __call__(self, path: Path | None) -> "Found":
        """Labels and encoded images at a path. Raises `DataError` naming the file or the row."""
        module, _, function = self.reader.partition(":")
        read: Callable[[Path | None], Found] = getattr(
            import_module(f"raykd.data.sources.{module}"), function
        )
        return read(path)


# Mean and std: CIFAR-10 as in SAKD's and KD_Lib's code, CIFAR-100 as in RepDistiller's and
# mdistiller's, Tiny-ImageNet as in mdistiller's (SAKD normalises it with CIFAR-10's), CINIC-10 from
# its README, https://github.com/BayesWatch/cinic-10; those of digits are measured over all 1,797
# images.
_CINIC10 = ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835))
SOURCES: Registry[Source] = Registry("dataset")
for _name, _source in {
    "digits": Source(
        "1,797 real handwritten digits of 8 x 8 pixels (UCI), from scikit-learn; no test split.",
        "decoded:digits",
        ((0.3053, 0.3053, 0.3053), (0.3759, 0.3759, 0.3759)),
    ),
    "cifar10": Source(
        "CIFAR-10: downloaded by torchvision, or image tables at `path`.",
        "decoded:cifar10",
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "cifar100": Source(
        "CIFAR-100 with its fine labels: downloaded by torchvision, or image tables at `path`.",
        "decoded:cifar100",
        ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
    "tiny_imagenet": Source(
        "Tiny-ImageNet, 200 classes: downloaded, or as distributed or image tables at `path`.",
        "decoded:tiny_imagenet",
        ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    ),
    "cinic10": Source(
        "CINIC-10, to train on `train`: downloaded, or as distributed or image tables at `path`.",
        "decoded:cinic10",
        _CINIC10,
    ),
    "cinic10_trainvalid": Source(
        "CINIC-10, to train on `train` and `valid`: downloaded, or as distributed at `path`.",
        "decoded:cinic10_trainvalid",
        _CINIC10,
    ),
    "folder": Source(
        "Image files in one folder per class, at the top or in `train` and `test` (or `val`).",
        "decoded:folder",
    ),
    "table": Source(
        "Parquet, Arrow or Feather tables with a column of encoded images and one of labels.",
        "decoded:table",
    ),
    "webdataset": Source(
        "Tar shards of images and labels: a folder, one, or a pattern such as "
        "train-{000..146}.tar.",
        "decoded:webdataset",
    ),
}.items():
    SOURCES.add(_name, _source)
