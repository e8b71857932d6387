"""How a teacher's outputs are written down, and read back.

Shapes: n rows of a shard, B batch, C classes, D embedding width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from raykd.types import Outputs, Signal

_LOWEST = torch.finfo(torch.float16).min


def encode(outputs: Outputs, signals: Signal) -> dict[str, Tensor]:
    """The columns of the `dense` codec for one batch, on the CPU.

    `logits` float16 [n, C] are the logits minus the row's maximum, which is `maximum`
    float32 [n]: near the maximum, where the probability is, float16 is finest. A logit more
    than 65504 below the maximum is stored as that. `embedding` is float16 [n, D].
    Raises `ValueError` where an output is not finite.
    """
    logits = outputs.logits.float()
    maximum = logits.amax(dim=1)
    shifted = (logits - maximum[:, None]).clamp_min(_LOWEST)
    columns = {"logits": shifted.to(torch.float16), "maximum": maximum}
    if Signal.EMBEDDING in signals:
        columns["embedding"] = outputs.embedding.to(torch.float16)
    for name, column in columns.items():
        if not bool(column.isfinite().all()):
            row = int((~column.isfinite()).view(len(column), -1).any(1).nonzero()[0, 0])
            raise ValueError(f"the teacher's {name} of row {row} of this batch are not finite")
    return {name: column.cpu() for name, column in columns.items()}


def decode(columns: Mapping[str, Tensor], rows: Tensor) -> Outputs:
    """The outputs at `rows` (int64 [B]) of stored columns, as float32."""
    logits = columns["logits"].index_select(0, rows).float()
    logits.add_(columns["maximum"].index_select(0, rows).unsqueeze(1))  # indexing parses slower
    embedding = columns.get("embedding")
    if embedding is not None:
        embedding = embedding.index_select(0, rows).float()
    return Outputs(logits, embedding=embedding)


def bytes_per_row(classes: int, embedding: int | None) -> int:
    """Bytes that one row of the `dense` codec takes; `embedding` is None where it is not stored."""
    return 2 * classes + 4 + (2 * embedding if embedding is not None else 0)
