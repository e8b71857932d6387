"""CINIC-10 as it is distributed: train, valid and test, with one folder of PNG files per class.

Darlow et al. 2018, arXiv 1810.03505; the layout is that of the README of
https://github.com/BayesWatch/cinic-10.
"""

from pathlib import Path

from raykd.core.errors import DataError
from raykd.data.sources.archives import Archive
from raykd.data.sources.files import Files
from raykd.data.sources.folders import Tree, check_classes
from raykd.data.sources.raw_split import Found

# Alphabetical, and in the order of CIFAR-10.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CINIC10 = Archive(
    title="CINIC-10",
    file="CINIC-10.tar.gz",
    md5="6ee4d0c996905fe93221de577967a372",
    urls=(
        # The second is the published address. Where the server answers it with a page instead
        # of the file, as it has done since it moved to DSpace 7, the first one works.
        "https://datashare.ed.ac.uk/server/api/core/bitstreams/"
        "e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
        "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
    ),
    folder="CINIC-10",
    marker="train/airplane",
)


def read_cinic10(root: Path, parts: tuple[str, ...] = ("train",)) -> Found:
    """The dataset in its folder, whose `parts` become the training split.

    The test split is `test`, which holds the whole test set of CIFAR-10 and is never trained on.
    """
    for part in (*parts, "test"):
        if not (root / part).is_dir():
            raise DataError(
                f"{root / part}: there is no such folder; expected CINIC-10 as distributed, with "
                "train, valid and test"
            )
    tree = Tree.of(Files.at(root))
    for part in (*parts, "test"):
        check_classes(tree, f"{part}/", CLASSES, "CINIC-10")
    splits = {
        "train": tree.samples([f"{part}/" for part in parts], CLASSES),
        "test": tree.samples(["test/"], CLASSES),
    }
    return Found(splits, CLASSES, tree.stamp)
