"""Checks that a training ends in numbers: its losses, its weights and its answers are finite.

A training loss is that of the weights before an update, so it says nothing of the last one; and a
running variance without bound leaves every loss finite, since it divides. So each is looked at.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core.errors import WorkFailed
from raykd.recipes import StudentRun

_TODO = (
    "lower run.optim.lr (of a teacher run.teacher.optim.lr), set clip or warmup_epochs beside it, "
    "or choose precision float32"
)


def check_metrics(run: StudentRun, epoch: int, metrics: Mapping[str, Any]) -> None:
    """Raise `WorkFailed` where a number of an epoch (from 0) is not finite."""
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            what = f"the {name.replace('_', ' ')} of epoch {epoch} is not finite"
            raise WorkFailed(f"{_name(run)}: {what} ({value}); {_TODO}")


def is_finite(metrics: Mapping[str, Any]) -> bool:
    """True where every number of an epoch is finite."""
    return all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))


def check_weights(
    run: StudentRun,
    epoch: int,
    modules: Iterable[nn.Module],
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> None:
    """Raise `WorkFailed` where weights or statistics are not finite after an epoch (from 0).

    `total` adds counts up over the workers, so that all of them raise or none.
    """
    wrong = not_finite(modules, total=total)
    if wrong:
        raise WorkFailed(f"{_name(run)}: after epoch {epoch} {listed(wrong)} not finite; {_TODO}")


def not_finite(
    modules: Iterable[nn.Module],
    masks: nn.Module | None = None,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> list[str]:
    """Names of the parameters and buffers with values that are not finite, in their order.

    A bias of -inf in `masks` counts as finite: it is how a classifier leaves a class out.
    """
    named = {
        value: name
        for module in modules
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_floating_point()
    }
    biases = set() if masks is None else {v for n, v in masks.named_parameters() if "bias" in n}
    if not named:
        return []
    wrong = []
    for value in named:
        values = value.detach()
        if value in biases:
            values = values.clamp_min(torch.finfo(values.dtype).min)
        wrong.append((~values.isfinite()).any())
    counts = total(torch.stack(wrong).double()).tolist()
    return [name for name, count in zip(named.values(), counts, strict=True) if count]


def listed(names: list[str]) -> str:
    """The first of some names and the number of the others, as the subject of a sentence."""
    more = len(names) - 1
    return f"{names[0]} and {more} more are" if more else f"{names[0]} is"


def _name(run: StudentRun) -> str:
    return f"{run.method.name} {run.model} seed {run.seed}"
