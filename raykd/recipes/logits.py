"""What determines the cache of what a teacher says."""

from typing import TYPE_CHECKING, ClassVar, Literal

from raykd.data.images import Data, Split
from raykd.recipes.optim import Precision
from raykd.record import Record
from raykd.types import Signal

if TYPE_CHECKING:
    from raykd.recipes.student import AnyTeacher


class LogitsRun(Record):
    """The outputs of one teacher checkpoint over one split of one dataset.

    Which views are there is not part of it: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"

    teacher: "AnyTeacher"
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
