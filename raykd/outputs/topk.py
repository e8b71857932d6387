"""The largest logits of a row, and what the others amount to: the columns of the `topk` codec.

Everything is relative to the row's maximum, near which float16 is finest, and the maximum itself is
not kept: what reads it is no function of the k largest.

Shapes: B rows, C classes, k classes kept.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from raykd.core.types import Outputs
from raykd.methods.base import NEVER, full_precision, precise
from raykd.outputs.codecs import Tail

_LOWEST = torch.finfo(torch.float16).min


def encode_topk(shifted: Tensor, k: int) -> dict[str, Tensor]:
    """The columns for float32 logits [B, C] whose maximum is 0 in every row.

    - `values` float16 [B, k - 1]: the largest in falling order, without the first, which is 0.
    - `classes` uint8 [B, (k bits + 7) // 8]: theirs, each in `bits_for(C)` bits.
    - `tail` float16 [B]: the logsumexp of the others. That of the whole row follows from it, but
      not it from that, without losing what is small beside the largest.
    - `mean` float16 [B] and `deviation` float32 [B] (population) of all C. A mean only shifts a
      row, whereas an error of the deviation scales it.

    Of equal logits the ones of the lower classes count as larger. Raises `ValueError` where k is
    not smaller than C.
    """
    classes = shifted.shape[1]
    if k >= classes:
        raise ValueError(f"codec 'topk' keeps {k} of {classes} classes, and must leave some out")
    chosen = largest(shifted, k)
    columns = {} if k == 1 else {"values": _half(shifted.gather(1, chosen[:, 1:]))}
    deviation, mean = torch.std_mean(shifted, dim=1, correction=0)
    return columns | {
        "classes": packed(chosen, bits_for(classes)),
        "tail": _half(rest(shifted, chosen)),
        "mean": _half(mean),
        "deviation": deviation,
    }


def decode_topk(columns: Mapping[str, Tensor], rows: Tensor, classes: int, tail: Tail) -> Outputs:
    """The outputs at `rows` (int64 [B]): float32 logits relative to their maximum.

    [B, C], or for `ghost` [B, k + 1] with the classes of the first k beside them. The moments of
    the full row come with them.
    """
    picked = {
        name: columns[name].index_select(0, rows)
        for name in ("values", "classes", "tail", "mean", "deviation")
        if name in columns
    }
    others = picked["tail"].float()[:, None]
    values = torch.zeros_like(others)
    if "values" in picked:
        values = torch.cat([values, picked["values"].float()], dim=1)
    k = values.shape[1]
    kept = unpacked(picked["classes"], k, bits_for(classes))
    moments = torch.stack([picked["mean"].float(), picked["deviation"]], dim=1)
    if tail == "ghost":
        return Outputs(torch.cat([values, others], dim=1), moments=moments, kept=kept)
    if tail == "uniform":
        spread = (others - math.log(classes - k)).expand(-1, classes)
    else:
        spread = others.new_full((1, 1), NEVER).expand(len(others), classes)
    return Outputs(spread.scatter(1, kept, values), moments=moments)


def merged(student: Outputs, teacher: Outputs) -> Outputs:
    """The student's outputs with the logits that the teacher's are compared with.

    Where the teacher's have a ghost, the student's [B, C] become [B, k + 1]: those of the same k
    classes, and the logsumexp of all others. Otherwise they stay.
    """
    if teacher.kept is None:
        return student
    with full_precision(student.logits):
        logits = precise(student.logits)
        ghost = rest(logits, teacher.kept)[:, None]
        return student.answering(torch.cat([logits.gather(1, teacher.kept), ghost], dim=1))


def told(logits: Tensor, kept: Tensor) -> Tensor:
    """What a row of the codec says of float32 logits [B, C], whatever their maximum: [B, k + 3].

    Those of the classes `kept` (int64 [B, k]), the logsumexp of the others, mean and deviation.
    """
    shifted = (logits - logits.amax(dim=1, keepdim=True)).clamp_min(_LOWEST)
    deviation, mean = torch.std_mean(shifted, dim=1, correction=0)
    beside = torch.stack([rest(shifted, kept), mean, deviation], dim=1)
    return torch.cat([shifted.gather(1, kept), beside], dim=1)


def rest(logits: Tensor, kept: Tensor) -> Tensor:
    """The logsumexp [B] of the logits [B, C] without the classes `kept` (int64 [B, k])."""
    return logits.scatter(1, kept, NEVER).logsumexp(1)


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
    places = torch.arange(bits, device=numbers.device)
    flags = ((numbers[:, :, None] >> places) & 1).flatten(1)
    flags = torch.nn.functional.pad(flags, (0, -flags.shape[1] % 8)).unflatten(1, (-1, 8))
    return (flags << torch.arange(8, device=numbers.device)).sum(2).to(torch.uint8)


def unpacked(data: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers int64 [B, count] that `packed` made of `bits` bits each."""
    starts = torch.arange(count, device=data.device) * bits
    across = torch.arange((bits + 14) // 8, device=data.device)  # the bytes that one may touch
    places = (starts[:, None] // 8 + across).clamp_max(data.shape[1] - 1)  # beyond are no bits
    parts = data.index_select(1, places.flatten()).unflatten(1, places.shape).long()
    return ((parts << 8 * across).sum(2) >> starts % 8) & ((1 << bits) - 1)


def _half(values: Tensor) -> Tensor:
    """As float16, the lowest of which stands for all that is lower."""
    return values.clamp_min(_LOWEST).to(torch.float16)
