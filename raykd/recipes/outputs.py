"""LogitsRun: the recipe of a cache of a teacher's outputs."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from raykd.core.record import Limits, Recipe
from raykd.core.types import Signal
from raykd.data.recipe import AnyData, Split
from raykd.outputs.codecs import CODECS, Codec, CodecName, codec_of
from raykd.recipes.optim import Precision

if TYPE_CHECKING:
    from raykd.recipes.student import AnyTeacher


class LogitsRun(Recipe):
    """The outputs of one teacher checkpoint over one split of one dataset.

    Which views are there is not part of it: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"
    teacher: "AnyTeacher"
    anchor: int = Field(ge=0, le=Limits.EPOCHS)  # the checkpoint's epoch
    data: AnyData
    split: Split = "train"
    codec: CodecName = "dense"
    k: int | None = Field(
        default=None, ge=1, le=Limits.WIDTH
    )  # logits per row, for codecs that take it
    embedding: bool = False  # whether pooled features are stored beside the logits
    precision: Precision = "float32"  # in the teacher's forward

    @model_validator(mode="after")
    def _check(self) -> "LogitsRun":
        if ("k" in CODECS[self.codec].parameters) != (self.k is not None):
            raise ValueError(f"codec {self.codec!r} and k = {self.k} do not go together")
        return self

    def stored(self) -> Codec:
        """The codec of the logits; students may use another of its readings."""
        return codec_of({"codec": self.codec, "k": self.k})

    def wider(self) -> "LogitsRun":
        """The cache that has the same logits, and the embeddings beside them."""
        return self.model_copy(update={"embedding": True})

    def signals(self) -> Signal:
        """Signals that the cache has."""
        return Signal.LOGITS | (Signal.EMBEDDING if self.embedding else Signal(0))
