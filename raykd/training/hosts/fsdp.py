"""Shares of all weights, gradients and optimiser state, one per worker (FSDP2)."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from raykd.config.scale import Scale
from raykd.core.errors import ConfigError
from raykd.core.shutdown import Notice
from raykd.core.types import Signal
from raykd.tracking.logger import RunLog
from raykd.training import optim
from raykd.training.checkpointing import Checkpoints
from raykd.training.dry_run import check_shares
from raykd.training.ema import Average
from raykd.training.hosts.base import EVERY_EPOCH, NO_NOTICE, AnyModule, State
from raykd.training.hosts.group import GroupHost
from raykd.training.learner import Learner

# What reaches into a student's parts besides running its stages in order, once.
_INSIDE = Signal.LIVE | Signal.PREACTIVATIONS | Signal.PIXELS


class Shards:
    """Each worker has a share of the weights.

    A stage's weights are gathered when it runs and let go again, those of all else stay for a
    whole step. Buffers are every worker's own. After an epoch, a copy with all weights is what is
    evaluated, saved and released; it waits on the CPU meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        """Raises `ConfigError` where the group cannot do it."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _check_group(device)
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._copies: dict[nn.Module, nn.Module] = {}

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner itself, which from here on has its share of the weights."""
        assert isinstance(learner, Learner) and (average is None or isinstance(average, Average))
        check_shares(learner, learner.method)
        for module in (learner, *([] if average is None else [average])):
            self._copies[module] = copy.deepcopy(module).cpu()
            for value in module.parameters():
                value.data = value.data.contiguous()  # torch 2.15 shards no other layout
        method = learner.method
        if method.looks().student == ("given",) and not method.student_needs() & _INSIDE:
            for stage in learner.student.stages.values():
                if any(True for _ in stage.parameters()):
                    fully_shard(stage, mesh=self._mesh)
        fully_shard(learner, mesh=self._mesh)
        if average is not None:
            fully_shard(average, mesh=self._mesh)
        return learner

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """One message of each stage for all parts of a step."""
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(last)
        return nullcontext()

    def whole(self, module: AnyModule) -> AnyModule:
        """A copy with all weights, which is the same one every time."""
        copied = self._copies[module].to(self._device).train(module.training)
        pairs = zip(module.state_dict().values(), copied.state_dict().values(), strict=True)
        for value, target in pairs:  # one by one: no worker holds all of them twice
            target.copy_(value.full_tensor() if isinstance(value, DTensor) else value)
        return copied  # pyright: ignore[reportReturnType]

    def saved(self, optimiser: torch.optim.Optimizer) -> State:
        """Its state, gathered on the CPU."""
        return _gathered(optimiser.state_dict())

    def load(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Each worker takes its share of what all read."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        shares = {
            number: {name: _share(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        optim.load_state(optimiser, state | {"state": shares})

    def put_away(self) -> None:
        """Move the copies with all weights to the CPU."""
        for copied in self._copies.values():
            copied.cpu()


def _check_group(device: torch.device) -> None:
    """Raise `ConfigError` where gradients would not be averaged: some versions of gloo sum."""
    share, every = (torch.ones(size, device=device) for size in (1, dist.get_world_size()))
    try:
        dist.reduce_scatter_tensor(share, every, op=dist.ReduceOp.AVG)
    except RuntimeError:
        share.zero_()
    if share.item() != 1:
        raise ConfigError(
            f"scale.shard: the {dist.get_backend()} backend of torch {torch.__version__} does "
            "not average shares of gradients; use GPUs, a newer torch, or ddp"
        )


def group_host(
    checkpoints: Checkpoints,
    device: torch.device,
    log: RunLog | None = None,
    scale: Scale = EVERY_EPOCH,
    notice: Notice = NO_NOTICE,
) -> GroupHost:
    """One worker of a running process group; `scale.shard` says who holds the weights."""
    sharded = scale.shard == "fsdp" and dist.get_world_size() > 1
    return GroupHost(checkpoints, device, log, scale, notice, Shards(device) if sharded else None)


def _gathered(tree: Any) -> Any:
    """A tree of dicts and lists with whole tensors; all workers gather them in its order."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: _gathered(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_gathered(value) for value in tree)
    return tree


def _share(value: Any, parameter: Tensor) -> Any:
    """This worker's share of what belongs to a parameter; a step count is everyone's."""
    if not (isinstance(value, Tensor) and isinstance(parameter, DTensor)):
        return value
    if value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    value = value.to(parameter.device)
    return distribute_tensor(value, mesh, placements, src_data_rank=None)
