"""Base class of codecs: a teacher's logits as columns of a cache, and back.

Shapes: n rows of a shard, B batch, C classes, D embedding width, S stored numbers of a row.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from raykd.core.errors import ConfigError
from raykd.core.record import Record
from raykd.core.types import Outputs, Signal
from raykd.methods.base import Coverage, Method

LOWEST = torch.finfo(torch.float16).min  # stands for every logit further below its row's maximum


def check_finite(name: str, values: Tensor) -> None:
    """Raise `ValueError` where a teacher's outputs [n, ...] are not finite, with the first row."""
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0, 0])
        raise ValueError(f"row {row} of the teacher's {name} in this batch is not finite")


def check_stored(name: str, kind: str, values: Tensor, column: Tensor) -> None:
    """Raise where a column that a teacher's outputs `values` [n, ...] became is not finite.

    `ValueError` where the outputs are not, `ConfigError` where float16 does not reach so far;
    `kind` is that of the output, as in `run.embedding_codec`.
    """
    if column.is_floating_point() and not bool(column.isfinite().all()):
        check_finite(name, values)
        raise ConfigError(
            f"the teacher's {name} has numbers up to {float(values.abs().max()):.3g}, and float16 "
            "ends at 65504; train the teacher longer or at a lower rate, or, where these are "
            f"training images, set run.{kind}_codec to float32 or int8"
        )


class Codec(Record):
    """One way to store logits. A subclass is final.

    Logits are stored relative to their row's maximum: near it, where the probability is, float16
    is finest. Fields that are not in `parameters` say how stored bytes are read, and are no part of
    a cache's recipe.
    """

    parameters: ClassVar[tuple[str, ...]] = ()  # fields that shape the bytes; `OutputsRun` has them

    name: str
    """Name of the codec; a name alone takes every default."""

    @property
    def label(self) -> str:
        """Name and parameters, as in "topk 10"."""
        return " ".join([self.name, *(str(getattr(self, name)) for name in self.parameters)])

    def recipe(self) -> dict[str, Any]:
        """The fields of a cache's recipe that name this codec."""
        return {"codec": self.name} | {name: getattr(self, name) for name in self.parameters}

    def encode(self, outputs: Outputs, signals: Signal) -> dict[str, Tensor]:
        """The columns of one batch on the CPU; `embedding` float16 [n, D] where it is a signal.

        Raises `ValueError` where an output is not finite, or cannot be stored.
        """
        columns: dict[str, Tensor] = {}
        if Signal.LOGITS in signals:
            logits = outputs.logits.float()
            maximum = logits.amax(dim=1)
            shifted = (logits - maximum[:, None]).clamp_min(LOWEST)
            check_finite("logits", shifted)
            columns |= self.encode_logits(shifted, maximum)
        if Signal.EMBEDDING in signals:
            columns["embedding"] = outputs.embedding.to(torch.float16)
            check_stored("embedding", "embedding", outputs.embedding, columns["embedding"])
        return {name: column.cpu() for name, column in columns.items()}

    def decode(
        self, columns: Mapping[str, Tensor], rows: Tensor, classes: int | None = None
    ) -> Outputs:
        """The outputs at `rows` (int64 [B]) of stored columns, as float32.

        `classes` is C, for codecs that do not store all classes.
        """
        embedding = columns.get("embedding")
        if not columns.keys() - {"embedding"}:
            outputs = Outputs()
        else:
            outputs = self.decode_logits(columns, rows, classes)
        if embedding is None:
            return outputs
        return outputs.replace(embedding=embedding.index_select(0, rows).float())

    def bytes_per_row(self, classes: int | None, embedding: int | None = None) -> int:
        """Bytes of one row; `classes` is C and `embedding` D, None where they are not stored."""
        logits = 0 if classes is None else self.logits_bytes(classes)
        return logits + (0 if embedding is None else 2 * embedding)

    def serves(self, method: Method) -> bool:
        """True where the method's losses are right with what this codec keeps."""
        return method.accepts(self.coverage())

    # A codec implements the following; the defaults are those of one that keeps all classes.

    @abstractmethod
    def encode_logits(self, shifted: Tensor, maximum: Tensor) -> dict[str, Tensor]:
        """The columns for float32 logits [n, C] relative to their `maximum` [n]."""

    @abstractmethod
    def decode_logits(
        self, columns: Mapping[str, Tensor], rows: Tensor, classes: int | None
    ) -> Outputs:
        """The logits at `rows` (int64 [B]) as float32 outputs."""

    @abstractmethod
    def logits_bytes(self, classes: int) -> int:
        """Bytes of a row's logits."""

    def coverage(self) -> Coverage:
        """Part of a row of logits that is kept."""
        return Coverage()

    def refusal(self, method: Method, classes: int | None) -> str | None:
        """The reason why a student cannot learn by `method` from this codec; None where it can."""
        return None

    def readings(self) -> Mapping[str, "Codec"]:
        """The ways to read a cache of this codec, by name."""
        return {"": self}

    def as_stored(self) -> "Codec":
        """The reading that fills in nothing; `stored` compares its outputs."""
        return self

    def stored(self, live: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """The numbers [n, S] that are kept of live logits [n, C], and those of `outputs`."""
        return live, outputs.logits

    def tolerance(self, live: Tensor) -> Tensor:
        """The largest difference that storage explains from `live` numbers [n, S] of `stored`."""
        # float16 keeps 11 bits of a logit's distance from the row's maximum, down to its lowest
        # number.
        distance = live.amax(dim=1, keepdim=True) - live
        return 2e-3 + 1e-3 * distance + (distance + LOWEST).clamp_min(0)
