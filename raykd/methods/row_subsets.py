"""Losses of a method over subsets of the rows, one subset for each spot.

Shapes: B batch, n rows chosen at a spot, K channels, H, W pixels.
"""

from collections.abc import Mapping
from types import UnionType

import torch
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, precise
from raykd.methods.helper_kinds import Shared

_NORMS = nn.BatchNorm1d | nn.BatchNorm2d


def losses_on_rows(
    method: Method,
    rows: Mapping[str, Tensor],
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    helpers: nn.ModuleDict,
) -> dict[str, Tensor]:
    """Loss of each spot over its `rows` (int64 [n]), times n / B; 0 for n = 0.

    All spots of a `joint` method have equal rows. A single row counts as none where a batch norm of
    the helpers would see only one pixel of it. Every helper gets a gradient, possibly 0, and a
    `Shared` helper is always called, because the other workers wait for it.
    """
    spots = method.spots(student.features, teacher.stages)
    counts = _row_counts(method, spots, rows, student, teacher, helpers)
    size = len(batch.ids)

    # No rows at all: zero losses, without running the method.
    if not any(counts.values()) and not _contains(helpers, Shared):
        zero = precise(student.any_tensor).new_zeros(())
        for parameter in helpers.parameters():
            zero = zero + 0.0 * parameter.sum()
        return dict.fromkeys(spots, zero)

    # Rows of each spot.
    if method.joint or len(spots) == 1:
        subset = rows[next(iter(spots))]
        read = (*spots, "embedding", "logits") if method.joint else spots
        batch = batch if len(subset) == size else batch.rows(subset)
        keep = dict.fromkeys(read, subset)
    else:
        # A spot without rows gets two rows at weight 0, so that no method sees an empty map.
        two = torch.arange(min(2, size), device=batch.ids.device)
        keep = {spot: rows[spot] if counts[spot] else two for spot in spots}
    keep = {spot: subset for spot, subset in keep.items() if len(subset) < size}

    losses = method.losses(
        student.rows(keep),
        teacher.rows({spots.get(spot, spot): subset for spot, subset in keep.items()}),
        batch,
        helpers,
    )
    return {spot: counts[spot] / size * loss for spot, loss in losses.items()}


def _row_counts(
    method: Method,
    spots: Mapping[str, str],
    rows: Mapping[str, Tensor],
    student: Outputs,
    teacher: Outputs,
    helpers: nn.ModuleDict,
) -> dict[str, int]:
    """Number of rows in the loss of each spot."""
    counts = {spot: len(rows[spot]) for spot in spots}
    if 1 not in counts.values() or not _contains(helpers, _NORMS):
        return counts
    # Batch norm in training needs more than one value per channel.
    for spot, teacher_spot in spots.items():
        maps = student.features.get(spot), _map_at(teacher, teacher_spot)
        if counts[spot] == 1 and any(x is None or x[0, 0].numel() == 1 for x in maps):
            counts[spot] = 0
    return counts if all(counts.values()) or not method.joint else dict.fromkeys(counts, 0)


def _map_at(teacher: Outputs, spot: str) -> Tensor | None:
    """A map of the teacher's at a spot, its own or a derived one; None where there is none."""
    derived = teacher.derived.items() if teacher.has_derived else ()
    maps = (value for name, value in derived if name.partition(".")[0] == spot)
    return next(maps, None) if spot not in teacher.features else teacher.features[spot]


def _contains(helpers: nn.ModuleDict, kinds: type | UnionType) -> bool:
    """True where any module of the helpers is of these classes."""
    return any(isinstance(module, kinds) for module in helpers.modules())
