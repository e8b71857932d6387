"""Comparison of a cache with the live teacher whose outputs it holds.

Shapes: n rows, C classes, k classes kept.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.errors import CacheMismatch
from raykd.outputs.manifest import manifest_of
from raykd.recipes import OutputsRun
from raykd.recipes.optim import Precision
from raykd.storage.store import Store
from raykd.training.inputs import open_cache
from raykd.training.runs import ShardMaker

SPOT_CHECK = 64  # rows that a build compares with the live teacher at its end
_VIEWS = 4  # at most, that one comparison looks at


@dataclass(frozen=True)
class Comparison:
    """A cache beside the live teacher, over some random rows of its views."""

    rows: int
    difference: float  # largest absolute difference of what is stored
    # Mean KL(live || cache) at temperature 1, in nats; the tail of `topk` is uniform. None, as the
    # share of rows with the same answer (0 to 1), without logits.
    kl: float | None
    agreement: float | None
    lost: float | None = None  # share of the variance of embeddings and maps, the larger of both


def compare(store: Store, run: OutputsRun, rows: int, device: torch.device) -> Comparison:
    """Run the live teacher on random rows of a cache again.

    Raises `CacheMismatch` where the outputs differ by more than storage and rounding explain.
    """
    if not rows:
        return Comparison(0, 0.0, 0.0, 1.0)
    manifest = manifest_of(store, run)
    views = manifest.views() if manifest is not None else []
    cache = open_cache(store, run, views, device)
    maker = ShardMaker(store, run, device)
    size = len(maker.views.images)
    chosen = sorted({views[i * len(views) // _VIEWS] for i in range(_VIEWS)})
    codec = run.stored()
    live, stored, largest, lost = [], [], 0.0, None
    for view in chosen:
        ids = keyed_random.draw(
            run.data.seed, torch.arange(size), view, keyed_random.CHECK
        ).argsort()
        batch = maker.views.batch(ids[: -(-rows // len(chosen))], view)
        answers = maker.teacher(batch)
        # Filled-in logits are not compared: only the numbers that are stored.
        decoded = cache.take(batch.ids, view, codec=codec.as_stored())
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # expected, stored, tolerance
        if run.logits:
            live.append(answers.logits)
            stored.append(cache.take(batch.ids, view).logits)
            expected, stored_values = codec.stored(answers.logits, decoded)
            pairs.append((expected, stored_values, codec.tolerance(expected)))
        if maker.vectors is not None:
            columns, places = cache.columns(batch.ids, view)
            for *pair, share in maker.vectors.compared(answers, columns, places):
                pairs.append((pair[0], pair[1], pair[2]))
                lost = max(lost or 0.0, share)
        if run.embedding and run.embedding_codec is None:
            expected = answers.embedding.float()
            # float16 has 11 bits, and two forwards of one network differ by rounding.
            close = 1e-3 * expected.abs() + 1e-3 * expected.abs().amax(dim=1, keepdim=True) + 1e-6
            pairs.append((expected, decoded.embedding, close))
        for expected, stored_values, tolerance in pairs:
            differences = (expected - stored_values).abs()
            largest = max(largest, float(differences.max()))
            close = differences <= tolerance + _rounding(expected, run.precision)
            mismatch = ~close.all(dim=1)  # NaN is not close
            if bool(mismatch.any()):
                raise CacheMismatch(
                    f"{store.path(run)}: view {view}, sample {int(batch.ids[mismatch][0])}: the "
                    f"cache is {differences.max():.3g} away from the live teacher; remove the "
                    "folder and run again"
                )
    if not run.logits:
        return Comparison(rows, largest, None, None, lost)
    return replace(_comparison(torch.cat(live), torch.cat(stored), largest), lost=lost)


def _rounding(live: Tensor, precision: Precision) -> Tensor | float:
    """The largest difference [n, 1] between two forwards of one network."""
    if precision == "float32":
        return 0.0
    # bfloat16 has 8 bits, and its rounding depends on the other samples of a batch.
    return 0.05 * (1 + live.abs().amax(dim=1, keepdim=True))


def _comparison(live: Tensor, stored: Tensor, largest: float) -> Comparison:
    """Comparison of two sets of logits [n, C]."""
    kl = F.kl_div(
        stored.double().log_softmax(1),
        live.double().log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    same = live.argmax(1) == stored.argmax(1)
    return Comparison(len(live), largest, float(kl), float(same.double().mean()))
