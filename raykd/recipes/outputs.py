"""What determines the cache of what a teacher says."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record
from raykd.core.types import Signal
from raykd.data.record import AnyData, Split
from raykd.outputs.codecs import Codec, Kind, codec_of
from raykd.recipes.optim import Precision

if TYPE_CHECKING:
    from raykd.recipes.student import AnyTeacher


class LogitsRun(Record):
    """The outputs of one teacher checkpoint over one split of one dataset.

    Which views are there is not part of it: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"
    added: ClassVar[tuple[str, ...]] = ("k",)

    teacher: "AnyTeacher"
    anchor: int = Field(ge=0, le=Limits.EPOCHS)  # the checkpoint's epoch
    data: AnyData
    split: Split = "train"
    codec: Kind = "dense"
    k: int | None = Field(default=None, ge=1, le=Limits.WIDTH)  # logits that a row of `topk` keeps
    embedding: bool = False  # whether pooled features are stored beside the logits
    precision: Precision = "float32"  # of the teacher's forward

    @model_validator(mode="after")
    def _check(self) -> "LogitsRun":
        if (self.codec == "topk") != (self.k is not None):
            raise ValueError(f"codec {self.codec!r} and k = {self.k} do not go together")
        return self

    def stored(self) -> Codec:
        """How the logits are stored; students may read the tail of `topk` in any way."""
        return codec_of(self.codec, self.k)

    def wider(self) -> "LogitsRun":
        """The cache that has the same logits, and the embeddings beside them."""
        return self.model_copy(update={"embedding": True})

    def signals(self) -> Signal:
        """What the cache can answer."""
        return Signal.LOGITS | (Signal.EMBEDDING if self.embedding else Signal(0))
