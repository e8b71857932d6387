"""A GPU on a machine without one: tensors on "cuda" that have shapes and types, and no values.

Operators between devices raise there as they do on a GPU. Reading a number back, which waits for a
GPU, is noted and answered with a number that suits an index, a count or a share. What needs a real
device does not run: autograd's engine, autocast, streams, fused optimisers.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import raykd
from raykd.core.types import Batch
from tests.training.watched import CALLS, MASKED, WAITING

CUDA = torch.device("cuda", 0)
_ROOT = str(Path(raykd.__file__).parent)

Module = TypeVar("Module", bound=nn.Module)


class FakeGPU:
    """A region with a GPU that is none; `waits` are the places that waited for it."""

    def __init__(self) -> None:
        self.waits: set[str] = set()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def __call__(self) -> Iterator["FakeGPU"]:
        """The region."""
        with self._mode, _Operators(self), _Calls(self):
            yield self

    def moved(self, module: Module) -> Module:
        """The module with its parameters and buffers on the GPU; other tensors stay behind."""
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with self._mode:
                return module._apply(lambda value: torch.empty_like(value, device=CUDA))
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)

    def sent(self, value: Tensor) -> Tensor:
        """A tensor of the same shape and type on the GPU."""
        with self._mode:
            return torch.empty_like(value, device=CUDA)

    def batch(self, batch: Batch) -> Batch:
        """A batch on the GPU, with its looks."""
        weights = None if batch.weights is None else self.sent(batch.weights)
        tensors = {name: self.sent(getattr(batch, name)) for name in ("pixels", "targets", "ids")}
        looks = {look: self.batch(other) for look, other in batch.looks.items()}
        return replace(batch, **tensors, weights=weights, looks=looks)

    def waited(self) -> None:
        """Note the function of raykd that waits."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(_ROOT):
                place = Path(code.co_filename).relative_to(_ROOT).with_suffix("").as_posix()
                self.waits.add(f"{place}: {code.co_qualname}")
                return
            frame = frame.f_back


class _Operators(TorchDispatchMode):
    """Notes of operators that wait; numbers that are read back are made up."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        there = any(isinstance(x, Tensor) and x.is_cuda for x in args)
        if name == "aten::_local_scalar_dense":  # on the CPU, too: what lies there was read back
            if there:
                self._gpu.waited()
            return _answer(args[0])
        masked = name in MASKED and any(i is not None and i.dtype is torch.bool for i in args[1])
        if there and (name in WAITING or masked):
            self._gpu.waited()  # and the fake tensor raises, since its size is unknown
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Notes of calls that copy from or to the GPU and wait for that."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None):
        options = kwargs or {}
        there = bool(args) and isinstance(args[0], Tensor) and args[0].is_cuda
        made = func in (torch.tensor, torch.as_tensor) and _is_cuda(options.get("device"))
        if made or (there and (func in CALLS or func is torch.Tensor.new_tensor)):
            self._gpu.waited()
        if func is torch.Tensor.tolist:
            return _list(args[0])
        return func(*args, **options)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _list(value: Tensor) -> Any:
    """A nested list in place of a tensor's numbers."""
    return [_list(row) for row in value] if value.dim() else _answer(value)


def _answer(value: Tensor) -> bool | int | float:
    """A number of a tensor's type."""
    if value.dtype == torch.bool:
        return True
    return 0.25 if value.is_floating_point() else 3
