"""The optimiser that a recipe describes, and its learning rate at every step."""

import math
from typing import Any

import torch
from torch import nn

from raykd.methods.roles import Paced
from raykd.recipes import Optim


def build_optimiser(optim: Optim, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a module; one weight decay acts on everything, as in the CRD benchmark.

    A `Paced` part is a group of its own, which names the `rate` that scales the run's.
    """
    paced = [part for part in module.modules() if isinstance(part, Paced)]
    apart = {parameter for part in paced for parameter in part.parameters()}
    rest = [p for p in module.parameters() if p.requires_grad and p not in apart]
    trained: list[dict[str, Any]] = [{"params": rest}]
    for part in paced:
        own = {"rate": part.rate, "weight_decay": part.weight_decay}
        trained.append({"params": [*part.parameters()], **own})
    if optim.name == "adamw":
        return torch.optim.AdamW(trained, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        trained,
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The rate of one step (from 0 over the whole run), with `steps` steps to an epoch.

    Warm-up grows linearly, step by step, to `lr`. After it `multistep` multiplies by `gamma`
    from each milestone's epoch on, and `cosine` falls step by step, to 0 after the last.
    """
    warmup = optim.warmup_epochs * steps
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "cosine":
        done = (step - warmup) / (optim.epochs * steps - warmup)
        return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
    if optim.schedule == "multistep":
        passed = sum(step // steps >= milestone for milestone in milestones(optim))
        return optim.lr * optim.gamma**passed
    return optim.lr


def milestones(optim: Optim) -> tuple[int, ...]:
    """The epochs at which `multistep` lowers the rate.

    By default 5/8, 3/4 and 7/8 of all: 150, 180 and 210 of the CRD benchmark's 240.
    """
    if optim.milestones is not None:
        return optim.milestones
    return tuple(math.ceil(optim.epochs * eighths / 8) for eighths in (5, 6, 7))
