"""The optimiser that a recipe describes, and its learning rate at every step."""

import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from raykd.methods.helper_kinds import Paced
from raykd.recipes import Optim

_TOGETHER = "together"  # key of the groups whose gradients are clipped as one


def build_optimiser(
    optim: Optim,
    module: nn.Module,
    factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """The optimiser of a module; one weight decay acts on everything, as in the CRD benchmark.

    A `Paced` part is a group of its own, which names the `rate` that scales the run's. With
    `factors` of some parameters' rates, all that have the same one are a group.
    """
    paced = [part for part in module.modules() if isinstance(part, Paced)]
    apart = {parameter for part in paced for parameter in part.parameters()}
    rest = [p for p in module.parameters() if p.requires_grad and p not in apart]
    trained: list[dict[str, Any]] = _by_factor(rest, factors) if factors else [{"params": rest}]
    for part in paced:
        if not any(parameter.requires_grad for parameter in part.parameters()):
            continue  # it is frozen
        rate = part.rate * max((factors.get(p, 1.0) for p in part.parameters()), default=1.0)
        settings = {"rate": rate, "weight_decay": part.weight_decay}
        trained.append({"params": [*part.parameters()], **settings})
    # On a GPU, one kernel updates all weights; on a CPU the plain update keeps its bits.
    fused = True if rest and rest[0].is_cuda else None
    options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": fused}
    if optim.name == "adamw":
        return _without_compiler(torch.optim.AdamW)(trained, **options)
    options |= {"momentum": optim.momentum, "nesterov": optim.nesterov}
    return _without_compiler(torch.optim.SGD)(trained, **options)


@functools.cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """An optimiser of torch whose methods do not import torch's compiler.

    The import takes 1.5 CPU seconds in every process. It serves code that compiles optimisers, and
    raykd compiles networks alone.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


def _by_factor(
    parameters: Iterable[nn.Parameter], factors: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """Groups of the parameters that have the same factor, in the order of the first of each."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return [{"params": p, "rate": rate, _TOGETHER: True} for rate, p in groups.items()]


def update(optimiser: torch.optim.Optimizer, rate: float, clip: float | None) -> None:
    """Change the weights by their gradients, which are used up; `clip` is their largest norm.

    It is that of a group, or of all groups that differ in their factors alone.
    """
    parts: list[list[nn.Parameter]] = [[]]
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
        if group.get(_TOGETHER):
            parts[0] += group["params"]
        else:
            parts.append(group["params"])
    if clip is not None:
        for parameters in filter(None, parts):
            torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def load_state(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set the optimiser to a state that may be of another device.

    How it updates the weights follows from its own device.
    """
    pairs = zip(state["param_groups"], optimiser.param_groups, strict=True)
    groups = [saved | {"fused": current["fused"]} for saved, current in pairs]
    optimiser.load_state_dict(state | {"param_groups": groups})


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
