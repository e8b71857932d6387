"""Heads: classifiers of the maps of stages, and a frozen teacher's as derived columns.

Shapes: B batch, C classes, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods.base import Stages, precise
from raykd.methods.derived import Derived

Head = Literal["conv", "linear"]
HEAD_LOGITS = ".logits"  # end of a column's name
TEACHER_HEADS = "teacher_heads"  # name of the teacher's among helpers
_WIDTH = 256  # channels of a head's convolutions


def head_of(kind: Head, channels: int, classes: int) -> nn.Sequential:
    """Classifier from maps [B, K, H, W] to logits [B, C].

    `conv` is that of the code of arXiv 2103.00497; `linear` is one layer of the pooled map.
    """
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    if kind == "linear":
        return nn.Sequential(*pooled, nn.Linear(channels, classes))
    layers: list[nn.Module] = []
    for width in (channels, _WIDTH):
        layers.append(nn.Conv2d(width, _WIDTH, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(_WIDTH), nn.ReLU()]
    layers += [*pooled, nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, classes)]
    return nn.Sequential(*layers)


def head_stages(stages: Stages) -> list[str]:
    """Stages that have a head, in depth order: all but the stem and the last one."""
    return [name for name in stages if name.startswith("stage") and "." not in name][:-1]


def head_logits(heads: nn.Module, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits [B, C] of each of some heads, by stage, from the stages' maps."""
    assert isinstance(heads, nn.ModuleDict)
    return {stage: head(precise(maps[stage])) for stage, head in heads.items()}


class HeadLogits(Derived):
    """The logits [B, C] of a classifier on each stage but the stem and the last one."""

    trained: ClassVar[bool] = True

    name: Literal["head_logits"] = "head_logits"
    head: Head = "conv"
    """Kind of the classifiers."""

    @property
    def label(self) -> str:
        """The kind, as in "logits of conv heads"."""
        return f"logits of {self.head} heads"

    def reads(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def modules(self, teacher: Shapes, classes: int) -> nn.ModuleDict:
        """The heads. Raises `ConfigError` where the teacher has fewer than two stages."""
        stages = head_stages(teacher.features)
        if not stages:
            raise ConfigError(
                "heads are on the stages before a network's last, and the teacher has only "
                f"{', '.join(teacher.features) or 'no stages'}. Choose a teacher with two stages "
                "or more, or a method that reads logits or embeddings."
            )
        heads = {s: head_of(self.head, teacher.features[s][0], classes) for s in stages}
        return nn.ModuleDict({TEACHER_HEADS: nn.ModuleDict(heads)})

    def columns(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """One column a head: C numbers."""
        logits = head_logits(outputs.modules[TEACHER_HEADS], outputs.features)
        return {f"{stage}{HEAD_LOGITS}": value for stage, value in logits.items()}
