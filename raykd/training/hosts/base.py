"""Protocols of a host and of the weights on it, replicated weights, and the host of one process."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.config.scale import Scale
from raykd.core.shutdown import Notice
from raykd.tracking.jsonl import JsonLines
from raykd.tracking.logger import RunLog
from raykd.training import optim
from raykd.training.checkpointing import Checkpoints

EVERY_EPOCH = Scale(checkpoint_seconds=0)  # in this process, with a checkpoint after every epoch
NO_NOTICE = Notice()  # never signals a shutdown

# Batch-norm statistics stay each worker's own within an epoch. torch 2.15 renamed the option.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}

AnyModule = TypeVar("AnyModule", bound=nn.Module)
State = dict[str, Any]


class Weights(Protocol):
    """The way in which workers hold what they train: replicas, or a shard each."""

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner, with its gradients averaged over the workers; called before its optimiser
        is made.

        `average` is the running average of its weights. Both are equal on all workers.
        """
        ...

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Context manager for forward and backward of a part of a step, in which gradients add up.

        They are averaged over the workers in the `last` part.
        """
        ...

    def whole(self, module: AnyModule) -> AnyModule:
        """A learner or its average with all weights here, to be read; all workers call it."""
        ...

    def saved(self, optimiser: torch.optim.Optimizer) -> State:
        """The optimiser's state as one process alone would have it; all workers call it."""
        ...

    def load(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Set the optimiser to what was saved, on whichever host."""
        ...

    def put_away(self) -> None:
        """Free the device's memory of what `whole` returned."""
        ...


class Replicas:
    """All weights in each process; DistributedDataParallel averages gradients over workers."""

    def __init__(self, workers: int = 1) -> None:
        """`workers`: number of processes that train together."""
        self._workers = workers

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner, in DDP where there are several workers."""
        if self._workers == 1:
            return learner  # averaging over one worker costs 7 % of a small network's step
        # DDP rebuilds its buckets after the first backward. With gloo and three or more workers
        # that changes the order of summation, so a resumed run would differ.
        # `find_unused_parameters=True` keeps the first buckets.
        on_cpu = next(learner.parameters()).device.type == "cpu"
        return DistributedDataParallel(
            learner,
            gradient_as_bucket_view=True,
            find_unused_parameters=on_cpu and self._workers > 2,
            **_OWN_BUFFERS,
        )

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """One message for all parts of a step."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def whole(self, module: AnyModule) -> AnyModule:
        """The module itself."""
        return module

    def saved(self, optimiser: torch.optim.Optimizer) -> State:
        """The optimiser's own state."""
        return optimiser.state_dict()

    def load(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Set the optimiser to a state."""
        optim.load_state(optimiser, state)

    def put_away(self) -> None:
        """Nothing was copied."""


class Host(Protocol):
    """One worker of a training: its collectives, its checkpoints, and the weights that it holds."""

    rank: int
    world: int
    device: torch.device
    scale: Scale  # how the work is done; no result depends on it
    log: RunLog  # where the metrics of epochs go
    weights: Weights

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the workers, on each of them."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all workers [n, ...], in the order of the workers, on each of them."""
        ...

    def agree(self, module: nn.Module) -> None:
        """Average the module's floating-point buffers (batch-norm statistics) over the workers."""
        ...

    def restore(self) -> State | None:
        """The state of the last checkpoint; None to start from the beginning."""
        ...

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Begin, or go on after the epochs of `history`."""
        ...

    def between(self, state: Callable[[], State]) -> None:
        """Keep a checkpoint between two steps of an epoch, where it is time to.

        All workers call it after the same steps, and then `state` all or none.
        """
        ...

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Log an epoch's metrics, and keep a checkpoint where it is time to."""
        ...


class LocalHost:
    """This process alone."""

    rank = 0
    world = 1

    def __init__(
        self,
        checkpoints: Checkpoints,
        device: torch.device,
        log: RunLog | None = None,
        scale: Scale = EVERY_EPOCH,
        notice: Notice = NO_NOTICE,
    ) -> None:
        """`log`: None keeps metrics.jsonl alone."""
        self.checkpoints = checkpoints
        self.device = device
        self.log = log or RunLog(None, (JsonLines(checkpoints.folder),))
        self.scale = scale
        self.weights: Weights = Replicas()
        self._notice = notice

    def total(self, values: Tensor) -> Tensor:
        """The tensor itself."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows

    def agree(self, module: nn.Module) -> None:
        """Nothing to agree on."""

    def restore(self) -> State | None:
        """The state of the last checkpoint."""
        return self.checkpoints.restore()

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Begin the log with the epochs of `history`."""
        self.log.begin(history)

    def between(self, state: Callable[[], State]) -> None:
        """Replace the checkpoint, where one is due."""
        leaving = self._notice.given()
        if self.checkpoints.due_within(leaving=leaving):
            self.checkpoints.keep(state())
        if leaving:
            self._notice.heeded()

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Log the metrics, and keep a checkpoint where it is time to."""
        leaving = self._notice.given()
        self.log.epoch(metrics)
        self.checkpoints.record(state, last=last or leaving)
        if leaving and not last:
            self._notice.heeded()
