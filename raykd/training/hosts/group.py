"""A worker of a torch process group."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom
from raykd.core.shutdown import Notice
from raykd.tracking.jsonl import JsonLines
from raykd.tracking.logger import RunLog
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import EVERY_EPOCH, NO_NOTICE, Replicas, State, Weights

# The workers ask each other whether a checkpoint is due about this often, and first after 8 steps.
_ASK_SECONDS = 2.0
_FIRST_STEPS = 8
_MOST_STEPS = 64


class GroupHost:
    """One worker of a torch process group that is already up, under Ray Train or torchrun.

    Every worker reads the same checkpoint, from a folder that all can reach; rank 0 writes it.
    Every worker calls its loggers.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        device: torch.device,
        log: RunLog | None = None,
        scale: Scale = EVERY_EPOCH,
        notice: Notice = NO_NOTICE,
        weights: Weights | None = None,
    ) -> None:
        """`log`: None keeps metrics.jsonl alone. `weights`: None replicates them."""
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.checkpoints = checkpoints
        self.device = device
        lines = (JsonLines(checkpoints.folder),) if self.rank == 0 else ()
        self.log = log or RunLog(None, lines)
        self.scale = scale
        self._notice = notice
        self.weights: Weights = weights or Replicas(self.world)
        self._every, self._steps, self._since = _FIRST_STEPS, 0, time.monotonic()
        self._pending: Callable[[], list[int]] | None = None  # the last question to all workers

    def __deepcopy__(self, memo: dict[int, Any]) -> "GroupHost":
        """Itself: helpers that are copied go on with the process group that there is."""
        return self

    def total(self, values: Tensor) -> Tensor:
        """The sum over the workers."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all workers, each of which may have a different number of them."""
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
        state = self.checkpoints.restore()
        position = [-1, 0]
        if state is not None:
            position = [state["epoch"], (state.get("within") or {"steps": 0})["steps"]]
        positions = self.gather(torch.tensor([position], device=self.device))
        if len(positions.unique(dim=0)) > 1:
            raise NoRoom(
                f"{self.checkpoints.folder}: the workers see different checkpoints there; "
                "the store must be a folder that all nodes share"
            )
        return state

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Begin the log, once all workers have read the checkpoint."""
        dist.barrier()
        self.log.begin(history)

    def between(self, state: Callable[[], State]) -> None:
        """Have rank 0 replace its checkpoint, where any worker finds it time to.

        The workers exchange this every few seconds, and act on the exchange before, so that no
        device is waited for.
        """
        self._steps += 1
        if self._steps < self._every:
            return
        due, self._every = (False, self._every) if self._pending is None else self._pending()
        if due:
            checkpoint = state()
            self.weights.put_away()
            self._keep(checkpoint)
        now, leaving = time.monotonic(), self._notice.given()
        pace = self._steps / max(now - self._since, 1e-6)  # steps per second
        steps = min(max(round(_ASK_SECONDS * pace), 1), _MOST_STEPS)
        due = (leaving or self.rank == 0) and self.checkpoints.due_within(leaving=leaving)
        self._pending = self._sum_later(int(due), steps if self.rank == 0 else 0)
        self._steps, self._since = 0, now
        if leaving:
            self._notice.heeded()

    def _sum_later(self, *values: int) -> Callable[[], list[int]]:
        """A function that returns the sums of some numbers over the workers."""
        answer = self.total(torch.tensor(values).to(self.device, non_blocking=True))
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

    def report(self, metrics: Mapping[str, Any], state: Callable[[], State], *, last: bool) -> None:
        """Log the metrics, and keep a checkpoint on rank 0 where it is time to."""
        due_anywhere, self._pending = self._pending is not None and bool(self._pending()[0]), None
        self.log.epoch(metrics)
        leaving = due_anywhere or self._notice.given()
        due = leaving or (self.rank == 0 and self.checkpoints.due(last=last))
        if self.total(torch.tensor(int(due), device=self.device)):
            self._keep(state())
        if not last:
            self.weights.put_away()

    def _keep(self, state: State) -> None:
        """Replace the checkpoint, on rank 0."""
        if self.rank == 0:
            self.checkpoints.keep(state)
        self.checkpoints.restart_timer()
