"""The part of a checkpoint within an epoch that is not weights.

Within an epoch every worker has some things of its own: what its batch norms have seen, what it
has counted, what it will draw next, its sums of losses. They are kept for each of them, so that as
many workers go on bit for bit. Another number of workers goes on with their means and totals, and
draws anew.

Shapes: W workers that wrote, n bytes of each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core import keyed_random
from raykd.methods.helper_kinds import Shared, Tally
from raykd.training.hosts.base import Host

State = dict[str, Any]
Sums = dict[str, Tensor]  # losses by name, summed over the steps that are done


def save(steps: int, sums: Sums, modules: Sequence[nn.Module], host: Host) -> State:
    """The workers' state after `steps` steps of an epoch; all of them call it."""
    noise = _generator_states(host.device)
    values = [*noise, *sums.values(), *_buffers(modules), *_counts(modules)]
    row = torch.cat([_bytes(value).to(host.device) for value in values])
    return {
        "steps": steps,
        "noise": [torch.empty_like(value) for value in noise],
        "sums": {name: torch.empty_like(value, device="cpu") for name, value in sums.items()},
        "rows": host.gather(row[None]).cpu(),  # uint8 [W, n]
    }


@torch.no_grad()
def restore(
    within: State, modules: Sequence[nn.Module], host: Host, key: Sequence[int]
) -> tuple[int, Sums]:
    """Set this worker to where it was: the steps that are done, and its sums.

    `key` name the epoch and this worker; what it draws follows from them where there were not as
    many workers before.
    """
    names, buffers, counts = [*within["sums"]], _buffers(modules), _counts(modules)
    noise = [*within["noise"]]
    templates = [*noise, *within["sums"].values(), *buffers, *counts]
    rows = [_values(row, templates) for row in within["rows"]]
    if len(rows) == host.world:
        values = rows[host.rank]
        _set_generators(values[: len(noise)], host.device)
    else:
        torch.manual_seed(keyed_random.seed(*key, within["steps"]))
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        means = [c.mean(0) if c.is_floating_point() else c[0] for c in columns]
        totals = [c.sum(0) * (host.rank == 0) for c in columns[len(columns) - len(counts) :]]
        values = means[: len(means) - len(counts)] + totals
    values = values[len(noise) :]
    for buffer, value in zip([*buffers, *counts], values[len(names) :], strict=True):
        buffer.copy_(value)
    sums = {name: value.to(host.device) for name, value in zip(names, values, strict=False)}
    return within["steps"], sums


def _buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The buffers in which workers may differ; those of a `Shared` helper are equal."""
    parts = [m for one in modules for m in one.modules() if not isinstance(m, Shared | Tally)]
    return [value for module in parts for value in module.buffers(recurse=False)]


def _counts(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The workers' counts in this epoch."""
    return [m.counts for one in modules for m in one.modules() if isinstance(m, Tally)]


def _generator_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, uint8."""
    states = [torch.get_rng_state()]
    return states if device.type != "cuda" else [*states, torch.cuda.get_rng_state(device)]


def _set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    """Set torch's generators, as far as there are such here."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _bytes(value: Tensor) -> Tensor:
    """The memory of a tensor, uint8."""
    return value.detach().contiguous().view(-1).view(torch.uint8)


def _values(row: Tensor, templates: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the given shapes and types from the memory of one after the other."""
    sizes = [template.numel() * template.element_size() for template in templates]
    parts = row.split(sizes)
    # A copy, since memory in the middle of a row may lie where no number of this type can.
    return [
        part.clone().view(template.dtype).view(template.shape)
        for part, template in zip(parts, templates, strict=True)
    ]
