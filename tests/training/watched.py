"""Steps of a run under watch: nothing in them may wait for a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raykd.data.loading.loader import Views
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.training import initial_state, inputs
from raykd.training.loop import Metrics, Sources, distil
from raykd.training.runs import local_host

# Operators whose result, or the size of it, the host reads from the device, and one that sends
# numbers of Python there, which is waited for, too.
WAITING = {
    "aten::_local_scalar_dense": "a number is read",
    "aten::nonzero": "the size depends on values",
    "aten::masked_select": "the size depends on values",
    "aten::_unique2": "the size depends on values",
    "aten::unique_dim": "the size depends on values",
    "aten::unique_consecutive": "the size depends on values",
    "aten::bincount": "the size depends on values",
    "aten::repeat_interleave.Tensor": "the size depends on values",
    "aten::equal": "a number is read",
    "aten::lift_fresh": "a tensor is made from numbers of Python",
}
MASKED = ("aten::index.Tensor", "aten::index_put_", "aten::index_put")  # by a mask: its sum is read
# Calls that on a CPU do without an operator.
CALLS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Waits(RuntimeError):
    """A step would wait for a GPU."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in WAITING:
            raise Waits(f"{name}: {WAITING[name]}")
        if name in MASKED and any(i is not None and i.dtype is torch.bool for i in args[1]):
            raise Waits(f"{name}: the size depends on a mask")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in CALLS:
            raise Waits(f"{func.__name__}: values are read")
        return func(*args, **(kwargs or {}))


class NoWaiting(AbstractContextManager[None]):
    """A region in which `Waits` is raised where a GPU would have to be waited for."""

    def __enter__(self) -> None:
        self.modes = [_Operators(), _Calls()]
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *details) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*details)


class WatchedViews(Views):
    """Views whose first batch of an epoch is taken as ever, and whose others are under watch.

    So is what the caller does between them, up to the epoch's last update.
    """

    def __init__(self, views: Views, guard: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(views.images, views.data, views.looks, device=views.device)
        self.guard = guard

    def batches(self, rows, view, epoch):
        batches = super().batches(rows, view, epoch)
        yield next(batches)
        with self.guard():
            yield from batches


def watched_losses(
    store: Store, run: StudentRun, guard: Callable[[], AbstractContextManager[None]] = NoWaiting
) -> list[Metrics]:
    """The metrics of a run whose steps are under watch; without an evaluation."""
    host = local_host(store, run)
    train, _ = inputs.views(store, run, host)
    views = WatchedViews(train, guard)
    learner = initial_state.learner(store, run, host, train.images.targets)
    teacher_at = inputs.teachers(store, run, host.device)
    return distil(run, learner, Sources(teacher_at, views), host).history
