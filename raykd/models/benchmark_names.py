"""Renaming of the CIFAR benchmark's parameters to this package's names.

HobbitLong/RepDistiller (`models/`) and megvii-research/mdistiller (`mdistiller/models/cifar/`)
have the networks of this package; spot-adaptive distillation's repository has the same names.
"""

import re
from collections.abc import Callable, Mapping

Renaming = Callable[[str], str]

_CLASSIFIER = (r"^(fc|linear)\.", "classifier.")
_RESNET = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^layer(\d)\.", r"stage\1."),
    (r"\.downsample\.", ".shortcut."),
    _CLASSIFIER,
)
_WIDE_RESNET = (
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "pool.0."),
    (r"^block(\d)\.layer\.", r"stage\1."),
    (r"\.convShortcut\.", ".shortcut."),
    _CLASSIFIER,
)
_SHUFFLENET_V2 = (
    (r"^conv2\.", "pool.0."),
    (r"^bn2\.", "pool.1."),
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    # The first block of a stage widens: its left branch has two convolutions of its own.
    (r"^layer(\d)\.0\.conv([12])\.", lambda m: f"stage{m[1]}.0.left.{2 * int(m[2]) - 2}."),
    (r"^layer(\d)\.0\.bn([12])\.", lambda m: f"stage{m[1]}.0.left.{2 * int(m[2]) - 1}."),
    (r"^layer(\d)\.0\.(conv|bn)([345])\.", lambda m: _right(m[1], "0", m[2], int(m[3]) - 2)),
    (r"^layer(\d)\.(\d)\.(conv|bn)([123])\.", lambda m: _right(m[1], m[2], m[3], int(m[4]))),
    _CLASSIFIER,
)
_INVERTED = {0: "expand.0", 1: "expand.1", 3: "depthwise.0", 4: "depthwise.1", 6: "reduce", 7: "bn"}
# A group of blocks -> its stage, and how many blocks of that stage come before it.
_GROUPS = {0: (1, 0), 1: (1, 1), 2: (2, 0), 3: (3, 0), 4: (3, 4), 5: (4, 0), 6: (4, 3)}
_MOBILENET = (
    (r"^conv1\.", "stem."),
    (r"^conv2\.", "pool."),
    (r"^blocks\.([0-6])\.(\d)\.conv\.([013467])\.", lambda m: _inverted(*map(int, m.groups()))),
    (r"^classifier\.0\.", "classifier."),
)
_VGG = (
    (r"^block0\.", "stem."),
    # A stage begins with the pooling of the one before it.
    (r"^block([1-4])\.(\d+)\.", lambda m: f"stage{m[1]}.{int(m[2]) + 1}."),
)


def _right(stage: str, block: str, kind: str, number: int) -> str:
    """A layer of the right branch of a ShuffleNetV2's block; a ReLU follows its first norm."""
    index = {1: 0, 2: 3, 3: 5}[number] + (kind == "bn")
    return f"stage{stage}.{block}.right.{index}."


def _inverted(group: int, block: int, layer: int) -> str:
    """A layer of a MobileNetV2's block."""
    stage, before = _GROUPS[group]
    return f"stage{stage}.{before + block}.{_INVERTED[layer]}."


def _renaming(rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> Renaming:
    """The function that applies all rules to a name, one after another."""

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


# ShuffleNetV1's blocks have the same names in both.
RENAMINGS: Mapping[str, Renaming] = {
    "resnet": _renaming(_RESNET),
    "wide_resnet": _renaming(_WIDE_RESNET),
    "vgg": _renaming(_VGG),
    "mobilenet_v2": _renaming(_MOBILENET),
    "shufflenet_v2": _renaming(_SHUFFLENET_V2),
}
