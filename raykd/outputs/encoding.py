"""How a teacher's outputs are written down, and read back.

Shapes: n rows of a shard, B batch, C classes, k classes kept, D embedding width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from raykd.core.types import Outputs, Signal
from raykd.outputs.codecs import Codec, Int8, Tail, TopK
from raykd.outputs.topk import bits_for, decode_topk, encode_topk

_LOWEST = torch.finfo(torch.float16).min
_LEVELS = 255  # steps between the extremes of a row of `int8`
_COARSEST = 4.0  # step of `int8`, in units of the logits


def encode(outputs: Outputs, signals: Signal, codec: Codec | None = None) -> dict[str, Tensor]:
    """The columns of a codec (None: dense) for one batch, on the CPU.

    All are relative to the row's maximum: near it, where the probability is, float16 is finest. A
    logit more than 65504 below it is stored as that.

    - `dense`: `logits` float16 [n, C] and the `maximum` float32 [n].
    - `int8`: `levels` uint8 [n, C], the number of `step` float32 [n] below the `maximum`.
    - `topk`: see `encode_topk`.

    `embedding` is float16 [n, D] beside any of them. Raises `ValueError` where an output is not
    finite, where 256 levels are too few for a row, and where k is not below C.
    """
    logits = outputs.logits.float()
    maximum = logits.amax(dim=1)
    found = {"logits": (logits - maximum[:, None]).clamp_min(_LOWEST)}
    if Signal.EMBEDDING in signals:
        found["embedding"] = outputs.embedding.to(torch.float16)
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).any(1).nonzero()[0, 0])
            raise ValueError(f"the teacher's {name} of row {row} of this batch are not finite")
    shifted = found.pop("logits")
    if isinstance(codec, TopK):
        columns = encode_topk(shifted, codec.k)
    elif isinstance(codec, Int8):
        columns = {"maximum": maximum, **_levels(shifted)}
    else:
        columns = {"logits": shifted.to(torch.float16), "maximum": maximum}
    return {name: column.cpu() for name, column in (columns | found).items()}


def _levels(shifted: Tensor) -> dict[str, Tensor]:
    """The columns `levels` and `step` for logits [n, C] relative to their maximum."""
    step = shifted.amin(dim=1) / -_LEVELS
    if bool((step > _COARSEST).any()):
        row = int(step.argmax())
        raise ValueError(
            f"the teacher's logits of row {row} of this batch lie up to "
            f"{_LEVELS * float(step[row]):.0f} apart, too far for the 256 levels of codec 'int8'; "
            "use codec: dense or topk"
        )
    levels = (shifted / -step.clamp_min(torch.finfo().tiny)[:, None]).round()
    return {"levels": levels.to(torch.uint8), "step": step}


def decode(
    columns: Mapping[str, Tensor],
    rows: Tensor,
    classes: int | None = None,
    tail: Tail = "uniform",
) -> Outputs:
    """The outputs at `rows` (int64 [B]) of stored columns, as float32.

    What the columns are, their names say; `topk` wants the number of `classes`, too, and how the
    `tail` is to be read.
    """
    if "classes" in columns:
        assert classes is not None, "the cache's recipe has no number of classes"
        outputs = decode_topk(columns, rows, classes, tail)
    else:
        maximum = columns["maximum"].index_select(0, rows).unsqueeze(1)  # indexing parses slower
        if "levels" in columns:
            step = columns["step"].index_select(0, rows).unsqueeze(1)
            levels = columns["levels"].index_select(0, rows).float()
            logits = levels.mul_(-step).add_(maximum)
        else:
            logits = columns["logits"].index_select(0, rows).float().add_(maximum)
        outputs = Outputs(logits)
    embedding = columns.get("embedding")
    if embedding is None:
        return outputs
    return outputs.embedded(embedding.index_select(0, rows).float())


def bytes_per_row(classes: int, embedding: int | None, codec: Codec | None = None) -> int:
    """Bytes that one row of a codec (None: dense) takes.

    `embedding` is its width; None where it is not stored.
    """
    beside = 2 * embedding if embedding is not None else 0
    if isinstance(codec, TopK):
        # Values, class numbers, then tail, mean and deviation.
        return 2 * (codec.k - 1) + (codec.k * bits_for(classes) + 7) // 8 + 8 + beside
    return (classes + 8 if isinstance(codec, Int8) else 2 * classes + 4) + beside
