"""What determines a teacher, and the cache of what it says."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from raykd import models
from raykd.data.images import Data
from raykd.recipes.optim import Optim, Precision
from raykd.record import Record
from raykd.types import Signal

Network = Annotated[str, AfterValidator(models.check_name)]  # an alias is read as the name
Split = Literal["train", "test"]


class TeacherRun(Record):
    """A teacher: trained here with the labels, or read from published or given weights."""

    kind: ClassVar[str] = "teachers"

    model: Network
    data: Data  # trained on; of a pretrained one, only the normalisation counts
    optim: Optim = Optim()
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=10, ge=1)  # epochs between saved anchors (the last one always)
    weights: str | None = None  # a published name, or "sha256:..." of a file in the store

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved, in order; 0 alone for a pretrained one."""
        if self.weights is not None:
            return (0,)
        last = self.optim.epochs
        return (*range(self.save_every, last, self.save_every), last)


class LogitsRun(Record):
    """The outputs of one teacher checkpoint over one split of one dataset.

    Which views are there is not part of it: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"

    teacher: TeacherRun
    anchor: int  # the checkpoint's epoch
    data: Data
    split: Split = "train"
    codec: Literal["dense"] = "dense"
    embedding: bool = False  # whether pooled features are stored beside the logits
    precision: Precision = "float32"  # of the teacher's forward

    def wider(self) -> "LogitsRun":
        """The cache that has the same logits, and the embeddings beside them."""
        return self.model_copy(update={"embedding": True})

    def signals(self) -> Signal:
        """What the cache can answer."""
        return Signal.LOGITS | (Signal.EMBEDDING if self.embedding else Signal(0))
