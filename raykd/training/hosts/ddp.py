"""One worker of many that train together, each with all weights."""

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.core.errors import NoRoom
from raykd.training.hosts.base import Complete, State

# Batch-norm statistics stay each worker's own within an epoch. torch 2.15 renamed the option.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}

# The workers ask each other whether a checkpoint is due about this often, and first after 8 steps.
_ASK_SECONDS = 2.0
_FIRST_STEPS = 8
_MOST_STEPS = 64


class GroupHost(Complete):
    """One worker of a torch process group that is already up, under Ray Train or torchrun.

    Every worker reads the same checkpoint, from a folder that all can reach; rank 0 writes it.
    Every worker calls its loggers.
    """

    def _begin(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._every, self._steps, self._since = _FIRST_STEPS, 0, time.monotonic()
        self._asked: Callable[[], list[int]] | None = None  # what was asked the last time

    def wrap(self, learner: nn.Module, average: nn.Module | None) -> nn.Module:
        """The learner with its gradients averaged; buffers stay each worker's own in an epoch."""
        if self.world == 1:
            return learner  # averaging over one worker costs 7 % of a small network's step
        # After a first backward, torch cuts the gradients into messages anew, and gloo adds them up
        # in an order that follows from the cut: of three workers and more, a run that goes on would
        # begin with other sums than one that was not stopped. It does not where it looks for
        # parameters without a gradient.
        same = self.device.type == "cpu" and self.world > 2
        return DistributedDataParallel(
            learner, gradient_as_bucket_view=True, find_unused_parameters=same, **_OWN_BUFFERS
        )

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
        place = [-1, 0]
        if state is not None:
            place = [state["epoch"], (state.get("within") or {"steps": 0})["steps"]]
        places = self.gather(torch.tensor([place], device=self.device))
        if len(places.unique(dim=0)) > 1:
            raise NoRoom(
                f"{self.journal.folder}: the workers see different checkpoints there; "
                "the store must be a folder that all nodes share"
            )
        return state

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Begin the log, once all workers have read the checkpoint."""
        dist.barrier()
        self.log.begin(history)

    def between(self, state: Callable[[], State]) -> None:
        """Have rank 0 replace its journal's checkpoint, where any worker finds it time to.

        They ask each other every few seconds, and act on what they asked the last time, so that no
        device is waited for.
        """
        self._steps += 1
        if self._steps < self._every:
            return
        due, self._every = (False, self._every) if self._asked is None else self._asked()
        if due:
            kept = state()
            if self.rank == 0:
                self.journal.keep(kept)
            self.journal.kept()
        now, told = time.monotonic(), self._notice.given()
        pace = self._steps / max(now - self._since, 1e-6)  # steps per second
        steps = min(max(round(_ASK_SECONDS * pace), 1), _MOST_STEPS)
        due = (told or self.rank == 0) and self.journal.due_within(told=told)
        self._asked = self._ask(int(due), steps if self.rank == 0 else 0)
        self._steps, self._since = 0, now
        if told:
            self._notice.heeded()

    def _ask(self, *mine: int) -> Callable[[], list[int]]:
        """The sums of some numbers over the workers, once somebody asks."""
        answer = self.total(torch.tensor(mine).to(self.device, non_blocking=True))
        if self.device.type != "cuda":
            return answer.tolist
        here = torch.empty_like(answer, device="cpu", pin_memory=True)
        here.copy_(answer, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def read() -> list[int]:
            done.synchronize()
            return here.tolist()

        return read

    def report(
        self, metrics: Mapping[str, Any], state: Callable[[], State] | None, *, last: bool
    ) -> None:
        """Log the metrics, and keep a checkpoint on rank 0 where it is time to."""
        self.log.epoch(metrics)
        asked, self._asked = self._asked is not None and bool(self._asked()[0]), None
        told = torch.tensor(int(asked or self._notice.given()), device=self.device)
        self._record(state, now=last or bool(self.total(told)))

    def _record(self, state: Callable[[], State] | None, *, now: bool) -> None:
        """Keep a checkpoint on rank 0 where it is time to; `now`: in any case."""
        if self.rank == 0:
            self.journal.record(state, last=now)
