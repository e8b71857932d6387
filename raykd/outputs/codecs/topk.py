"""The largest logits of a row, and what the others amount to.

Everything is relative to the row's maximum, near which float16 is finest, and the maximum itself is
not kept: what reads it is no function of the k largest.

Shapes: B rows, C classes, k classes kept.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Outputs
from raykd.methods.base import MASKED_LOGIT, Coverage, Method, logsumexp_without
from raykd.outputs.codecs.base import LOWEST, Codec

Tail = Literal["uniform", "renormalise", "ghost"]
TAILS: tuple[Tail, ...] = ("uniform", "renormalise", "ghost")

# The highest temperatures that are accepted, from the errors in `experiments/README.md`.
_SOFTEST = {"uniform": 2.0, "renormalise": 1.0}


class TopK(Codec):
    """The k largest logits, the logsumexp of the others, and the row's mean and deviation.

    2 k + 6 bytes a row and the bits of k class numbers: 39 bytes for k = 10 of C = 1000.

    `tail` says how the other classes are read, and is no part of the cache:

    - `uniform`: each has an equal share of their mass. The mass is exact at temperature 1; what is
      lost is which of them are likelier, and the softer the targets the more that counts.
    - `renormalise`: they have no probability, and the k have all of it (the "marginal re-norm"
      of FKD, Shen and Xing 2022, arXiv 2112.01528).
    - `ghost`: k + 1 classes are compared, of which the last, the ghost, stands for all others, in
      the student's logits too: how the student spreads that mass is left to the labels. Its mass is
      that of temperature 1 and of no other.
    """

    parameters: ClassVar[tuple[str, ...]] = ("k",)

    name: Literal["topk"] = "topk"
    k: int = Field(default=10, ge=1, le=Limits.WIDTH)
    """Largest logits that are stored of each row; fewer than there are classes."""
    tail: Tail = "uniform"
    """Reading of the classes that are not stored; see the description of the codec."""

    def encode_logits(self, shifted: Tensor, maximum: Tensor) -> dict[str, Tensor]:
        """The columns for float32 logits [B, C] whose maximum is 0 in every row.

        - `values` float16 [B, k - 1]: the largest in falling order, without the first, which is 0.
        - `classes` uint8 [B, (k bits + 7) // 8]: theirs, each in `bits_for(C)` bits.
        - `tail` float16 [B]: the logsumexp of the others. That of the whole row follows from it,
          but not it from that, without losing what is small beside the largest.
        - `mean` float16 [B] and `deviation` float32 [B] (population) of all C. A mean only shifts a
          row, whereas an error of the deviation scales it.

        Of equal logits the ones of the lower classes count as larger. Raises `ValueError` where k
        is not smaller than C.
        """
        k, classes = self.k, shifted.shape[1]
        if k >= classes:
            raise ValueError(
                f"codec 'topk' keeps {k} of {classes} classes, and must leave some out"
            )
        chosen = largest(shifted, k)
        columns = {} if k == 1 else {"values": _half(shifted.gather(1, chosen[:, 1:]))}
        deviation, mean = torch.std_mean(shifted, dim=1, correction=0)
        return columns | {
            "classes": packed(chosen, bits_for(classes)),
            "tail": _half(logsumexp_without(shifted, chosen)),
            "mean": _half(mean),
            "deviation": deviation,
        }

    def decode_logits(
        self, columns: Mapping[str, Tensor], rows: Tensor, classes: int | None
    ) -> Outputs:
        """Logits [B, C] relative to their maximum, or for `ghost` [B, k + 1] with their classes.

        The moments of the full row come with them.
        """
        assert classes is not None, "the cache's recipe has no number of classes"
        picked = {
            name: columns[name].index_select(0, rows)
            for name in ("values", "classes", "tail", "mean", "deviation")
            if name in columns
        }
        others = picked["tail"].float()[:, None]
        values = torch.zeros_like(others)
        if "values" in picked:
            values = torch.cat([values, picked["values"].float()], dim=1)
        kept = unpacked(picked["classes"], self.k, bits_for(classes))
        moments = torch.stack([picked["mean"].float(), picked["deviation"]], dim=1)
        if self.tail == "ghost":
            return Outputs(torch.cat([values, others], dim=1), moments=moments, kept=kept)
        if self.tail == "uniform":
            spread = (others - math.log(classes - self.k)).expand(-1, classes)
        else:
            spread = others.new_full((1, 1), MASKED_LOGIT).expand(len(others), classes)
        return Outputs(spread.scatter(1, kept, values), moments=moments)

    def logits_bytes(self, classes: int) -> int:
        """Values, class numbers, then tail, mean and deviation."""
        return 2 * (self.k - 1) + (self.k * bits_for(classes) + 7) // 8 + 8

    def coverage(self) -> Coverage:
        """Some classes, at the temperatures that the tail is meant for."""
        if self.tail == "ghost":
            return Coverage("merged", 1.0, 1.0)
        return Coverage("some", 0.0, _SOFTEST[self.tail])

    def refusal(self, method: Method, classes: int | None) -> str | None:
        """A sentence with the tails and the temperature that would do."""
        if method.needs() and classes is not None and self.k >= classes:
            return (
                f"codec 'topk' keeps {self.k} logits of a row, and the data have {classes} "
                "classes; lower run.codec.k, or use codec: dense or int8"
            )
        if self.serves(method):
            return None
        temperature = getattr(method, "temperature", None)
        cooler = method if temperature is None else method.model_copy(update={"temperature": 1.0})
        now, cool = (
            [tail for tail, codec in self.readings().items() if codec.serves(how)]
            for how in (method, cooler)
        )
        ways = [f"codec.tail: {' or '.join(now)}"] if now else []
        if self.tail in cool:
            ways.append("method.temperature: 1.0")
        elif cool and not now:
            ways.append(f"method.temperature: 1.0 with codec.tail: {' or '.join(cool)}")
        why = f"reads all classes, and codec 'topk' keeps {self.k} of them"
        if ways:
            at = f" at temperature {temperature:g}" if temperature is not None else ""
            why = f"cannot learn{at} from codec 'topk' with tail {self.tail!r}"
        ways.append("codec: dense or int8")
        return f"method {method.label!r} {why}; use {', or '.join(ways)}"

    def readings(self) -> Mapping[str, Codec]:
        """One for each tail."""
        return {tail: self.model_copy(update={"tail": tail}) for tail in TAILS}

    def as_stored(self) -> Codec:
        """The ghost: values and tail as they are."""
        return self.model_copy(update={"tail": "ghost"})

    def stored(self, live: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Logits of the kept classes, logsumexp of the others, mean and deviation: [B, k + 3]."""
        assert outputs.kept is not None and outputs.moments is not None
        shifted = (live - live.amax(dim=1, keepdim=True)).clamp_min(LOWEST)
        deviation, mean = torch.std_mean(shifted, dim=1, correction=0)
        beside = torch.stack([logsumexp_without(shifted, outputs.kept), mean, deviation], dim=1)
        numbers = torch.cat([shifted.gather(1, outputs.kept), beside], dim=1)
        return numbers, torch.cat([outputs.logits, outputs.moments], dim=1)


def largest(logits: Tensor, k: int) -> Tensor:
    """The classes int64 [B, k] of the largest float32 logits in falling order.

    On every device the lower class comes first among equals, which `torch.topk` does not promise:
    a logit and its class are one number here, and no two are equal.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0.0 is 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    number = torch.arange(logits.shape[1], device=logits.device)
    return ((rising << 32) - number).topk(k, dim=1).indices


def bits_for(classes: int) -> int:
    """Bits of a class's number."""
    return max(1, (classes - 1).bit_length())


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers int64 [B, k] below 2**bits as uint8 [B, (k bits + 7) // 8], the lowest bit first."""
    positions = torch.arange(bits, device=numbers.device)
    flags = ((numbers[:, :, None] >> positions) & 1).flatten(1)
    flags = torch.nn.functional.pad(flags, (0, -flags.shape[1] % 8)).unflatten(1, (-1, 8))
    return (flags << torch.arange(8, device=numbers.device)).sum(2).to(torch.uint8)


def unpacked(data: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers int64 [B, count] that `packed` made of `bits` bits each."""
    starts = torch.arange(count, device=data.device) * bits
    across = torch.arange((bits + 14) // 8, device=data.device)  # bytes that a number may span
    positions = (starts[:, None] // 8 + across).clamp_max(data.shape[1] - 1)  # no bits beyond
    parts = data.index_select(1, positions.flatten()).unflatten(1, positions.shape).long()
    return ((parts << 8 * across).sum(2) >> starts % 8) & ((1 << bits) - 1)


def _half(values: Tensor) -> Tensor:
    """Convert to float16, whose lowest number stands for everything below it."""
    return values.clamp_min(LOWEST).to(torch.float16)
