"""Losses of a method over subsets of the rows, one subset for each spot.

Shapes: B batch, n rows chosen at a spot, K channels, H, W pixels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, precise
from raykd.methods.helper_kinds import Shared

_NORMS = nn.BatchNorm1d | nn.BatchNorm2d


def chosen_losses(
    method: Method,
    rows: Mapping[str, Tensor],
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    helpers: nn.ModuleDict,
) -> dict[str, Tensor]:
    """Each spot's loss over its `rows` (int64 [n]), times n / B; 0 where none is chosen.

    The spots of a `joint` method have the same rows. One row counts as none where a batch norm of
    the helpers would see a single pixel of it. Every helper gets a gradient, be it 0, and one that
    is `Shared` is called in any case, since the other workers wait for it.
    """
    spots = method.spots(student.features, teacher.features)
    counts = _counts(method, spots, rows, student, teacher, helpers)
    size, chosen = len(batch.ids), any(counts.values())
    if not chosen and not any(isinstance(module, Shared) for module in helpers.modules()):
        nothing = precise(student.logits).new_zeros(())
        for parameter in helpers.parameters():
            nothing = nothing + 0.0 * parameter.sum()
        return dict.fromkeys(spots, nothing)
    if method.joint or len(spots) == 1:
        (taken, *_) = (rows[spot] for spot in spots)
        every = dict.fromkeys((*spots, "embedding", "logits"), taken) if method.joint else {}
        batch = batch if len(taken) == size else batch.rows(taken)
        keep = every | dict.fromkeys(spots, taken)
    else:
        # A spot without rows gets two of them, at weight 0: no method sees an empty map.
        two = torch.arange(min(2, size), device=batch.ids.device)
        keep = {spot: rows[spot] if counts[spot] else two for spot in spots}
    keep = {spot: taken for spot, taken in keep.items() if len(taken) < size}
    losses = method.losses(
        student.rows(keep),
        teacher.rows({spots.get(spot, spot): taken for spot, taken in keep.items()}),
        batch,
        helpers,
    )
    return {spot: counts[spot] / size * loss for spot, loss in losses.items()}


def _counts(
    method: Method,
    spots: Mapping[str, str],
    rows: Mapping[str, Tensor],
    student: Outputs,
    teacher: Outputs,
    helpers: nn.ModuleDict,
) -> dict[str, int]:
    """Number of rows in each spot's loss."""
    counts = {spot: len(rows[spot]) for spot in spots}
    if 1 not in counts.values() or not any(isinstance(m, _NORMS) for m in helpers.modules()):
        return counts
    for spot, other in spots.items():
        maps = student.features.get(spot), teacher.features.get(other)
        if counts[spot] == 1 and any(x is None or x[0, 0].numel() == 1 for x in maps):
            counts[spot] = 0
    return counts if all(counts.values()) or not method.joint else dict.fromkeys(counts, 0)
