"""Where a run trains: one process, or one worker of many. The loop cannot tell which."""

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.engine import optim
from raykd.engine.journal import Journal
from raykd.errors import NoRoom
from raykd.experiment import Scale

# Batch-norm statistics stay each worker's own within an epoch. torch 2.15 renamed the option.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}

EVERY_EPOCH = Scale(checkpoint_seconds=0)  # here, with a checkpoint after every epoch
PASS_ON_SECONDS = 5.0  # a report to Ray Train waits for its controller (Ray 2.60)

AnyModule = TypeVar("AnyModule", bound=nn.Module)
State = dict[str, Any]


class Host(Protocol):
    """A place to train."""

    rank: int
    world: int
    device: torch.device
    scale: Scale  # how the work is done: nothing of it changes what a run means

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner, with its gradients averaged over the workers; before its optimiser is made.

        `average` is what follows its weights. Both are as every worker has them.
        """
        ...

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """A region for the forward and backward of a part of a step, in which gradients add up.

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
        """Set the optimiser to what was saved, by whichever host."""
        ...

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

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Pass on an epoch's metrics, and keep a checkpoint where it is time to."""
        ...


class Complete:
    """A host that holds all weights itself."""

    def whole(self, module: AnyModule) -> AnyModule:
        """The module itself."""
        return module

    def saved(self, optimiser: torch.optim.Optimizer) -> State:
        """Its own state."""
        return optimiser.state_dict()

    def load(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """As it is."""
        optim.load_state(optimiser, state)


class LocalHost(Complete):
    """This process alone."""

    rank = 0
    world = 1

    def __init__(
        self,
        journal: Journal,
        device: torch.device,
        passed_on: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
        scale: Scale = EVERY_EPOCH,
    ) -> None:
        """`passed_on` is called with the metrics of every epoch."""
        self.journal = journal
        self.device = device
        self.scale = scale
        self._passed_on = passed_on

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner itself."""
        return learner

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Nothing to average."""
        return nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """The tensor itself."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows

    def agree(self, module: nn.Module) -> None:
        """Nothing to agree on."""

    def restore(self) -> State | None:
        """The state of the last checkpoint in the journal."""
        return self.journal.restore()

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Set the journal to the epochs of `history`."""
        self.journal.restart(history)

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Write the journal, and pass the metrics on."""
        self.journal.record(metrics, state, last=last)
        self._passed_on(metrics)


class GroupHost(Complete):
    """One worker of a torch process group that is already up, under Ray Train or torchrun.

    Every worker reads the same checkpoint, from a folder that all can reach; rank 0 writes.
    `passed_on` is called with an epoch's metrics on every worker or on none: after the last
    epoch, and after others that end `PASS_ON_SECONDS` or more after it was called before.
    """

    def __init__(
        self,
        journal: Journal,
        device: torch.device,
        passed_on: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
        scale: Scale = EVERY_EPOCH,
    ) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device
        self.scale = scale
        self.journal = journal
        self._passed_on = passed_on
        self._spoke = time.monotonic()

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner with its gradients averaged; buffers stay each worker's own in an epoch."""
        if self.world == 1:
            return learner  # averaging over one worker costs 7 % of a small network's step
        return DistributedDataParallel(learner, gradient_as_bucket_view=True, **_OWN_BUFFERS)

    def averaging(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """One message for all parts of a step."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def total(self, values: Tensor) -> Tensor:
        """The sum over the workers."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all workers, of which each may have another number."""
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(count) for _ in range(self.world)]
        dist.all_gather(counts, count)
        most = max(int(value) for value in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])

    def agree(self, module: nn.Module) -> None:
        """Average the floating-point buffers, as one message."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def restore(self) -> State | None:
        """The last checkpoint. Raises `NoRoom` where the workers do not see the same folder."""
        state = self.journal.restore()
        epoch = torch.tensor([-1 if state is None else state["epoch"]], device=self.device)
        epochs = [torch.empty_like(epoch) for _ in range(self.world)]
        dist.all_gather(epochs, epoch)
        if len({int(value) for value in epochs}) > 1:
            raise NoRoom(
                f"{self.journal.folder}: the workers see different checkpoints there; "
                "the store must be a folder that all nodes share"
            )
        return state

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Set the journal, once all workers have read it."""
        dist.barrier()
        if self.rank == 0:
            self.journal.restart(history)

    def report(
        self, metrics: Mapping[str, Any], state: Callable[[], State] | None, *, last: bool
    ) -> None:
        """Write the journal on rank 0, and pass the metrics on where rank 0 finds it time."""
        if self.rank == 0:
            self.journal.record(metrics, state, last=last)
        mine = self.rank == 0 and (last or time.monotonic() - self._spoke >= PASS_ON_SECONDS)
        if self.total(torch.tensor(int(mine), device=self.device)):
            self._passed_on(metrics)
            self._spoke = time.monotonic()
