"""Where a run trains: one process, or one worker of many. The loop cannot tell which."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from raykd.config.scale import Scale
from raykd.core.shutdown import Notice
from raykd.tracking.jsonl import JsonLines
from raykd.tracking.logger import RunLog
from raykd.training import optim
from raykd.training.checkpointing import Journal

EVERY_EPOCH = Scale(checkpoint_seconds=0)  # here, with a checkpoint after every epoch
NOBODY = Notice()  # says anything

AnyModule = TypeVar("AnyModule", bound=nn.Module)
State = dict[str, Any]


class Host(Protocol):
    """A place to train."""

    rank: int
    world: int
    device: torch.device
    scale: Scale  # how the work is done: nothing of it changes what a run means
    log: RunLog  # where the metrics of epochs go

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

    def between(self, state: Callable[[], State]) -> None:
        """Keep a checkpoint between two steps of an epoch, where it is time to.

        All workers call it after the same steps, and then `state` all or none.
        """
        ...

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Log an epoch's metrics, and keep a checkpoint where it is time to."""
        ...


class Complete:
    """A host that holds all weights itself."""

    rank: int

    def __init__(
        self,
        journal: Journal,
        device: torch.device,
        log: RunLog | None = None,
        scale: Scale = EVERY_EPOCH,
        notice: Notice = NOBODY,
    ) -> None:
        """`log`: None keeps metrics.jsonl alone."""
        self.journal = journal
        self.device = device
        self.scale = scale
        self._notice = notice
        self._begin()
        lines = (JsonLines(journal.folder),) if self.rank == 0 else ()
        self.log = log or RunLog(None, lines)

    def _begin(self) -> None:
        """What a host does at last to be made."""

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
        """Begin the log with the epochs of `history`."""
        self.log.begin(history)

    def between(self, state: Callable[[], State]) -> None:
        """Replace the journal's checkpoint, where it is time to."""
        told = self._notice.given()
        if self.journal.due_within(told=told):
            self.journal.keep(state())
        if told:
            self._notice.heeded()

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Log the metrics, and keep a checkpoint where it is time to."""
        told = self._notice.given()
        self.log.epoch(metrics)
        self.journal.record(state, last=last or told)
        if told and not last:
            self._notice.heeded()
