"""No distillation: the student learns from the labels alone. The baseline of every table."""

from typing import ClassVar, Literal

from raykd.methods.base import LabelMethod


class LabelOnly(LabelMethod):
    """Cross entropy with the labels, which the learner computes for every method; no teacher."""

    title: ClassVar[str] = "baseline: cross entropy with the labels"
    cost: ClassVar[str] = "nothing"

    name: Literal["label_only"] = "label_only"
