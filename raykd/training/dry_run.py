"""Trial forwards of networks and methods on empty images, before anything is trained.

Networks are made on torch's meta device, without memory or initialisation, where they can be; small
ones are run on the CPU, since computing there is faster than importing what that device needs.

Shapes: C classes, H, W pixels.
"""

import functools
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from raykd import models
from raykd.core.errors import ConfigError, RaykdError, text_of
from raykd.core.types import Shapes, Signal
from raykd.methods.base import Method
from raykd.models.staged import measure, on_meta
from raykd.recipes import AnyTeacher, StudentRun, TeacherRun
from raykd.training import network_parts, weights
from raykd.training.microbenchmark import step_of

Size = tuple[int, int]  # H, W
_ONE_VALUE = "more than 1 value per channel"  # torch's words for a batch norm without a variance
_META = "meta"
_OTHER_SIZE = (
    "choose another network, or bring the images to another size with data.resize, or data.stream"
)

_Made = TypeVar("_Made")


class OneValue(ConfigError):
    """A batch norm that would see a single value of a channel, which has no variance."""

    def __init__(self, whose: str = "this network's batch norm") -> None:
        super().__init__(
            f"a worker's share of a batch is 1 sample, which {whose} cannot be "
            "trained on; choose a larger run.optim.batch"
        )


def shapes_of(model: str, classes: int, size: Size) -> Shapes:
    """The sizes of a network's outputs for images of `size`.

    Raises `ConfigError` where the network cannot be made, or does not take such images.
    """
    return _on_meta(lambda: measure(models.build(model, classes), size), model, size)


def shapes_of_teacher(teacher: AnyTeacher, size: Size) -> Shapes:
    """The sizes of a teacher's outputs for images of `size`, as its students see them.

    Raises `ConfigError` as `shapes_of` does.
    """
    remedy = _OTHER_SIZE
    if isinstance(teacher, TeacherRun) and teacher.weights is not None:
        size = (teacher.size, teacher.size) if teacher.size else size
        remedy = "set the teacher's size to a side that it takes, or choose another network"
    network = functools.partial(weights.build_network, teacher)
    return _on_meta(lambda: measure(network(), size), teacher.model, size, remedy)


def check_training(model: str, classes: int, size: Size, share: int) -> None:
    """Raise `ConfigError` where a network cannot be trained on `share` images of `size` at a time.

    Two images tell as much as any larger number.
    """

    def train() -> None:
        network = models.build(model, classes).train()
        with torch.no_grad():
            network.outputs(torch.zeros(min(share, 2), 3, *size), Signal.LOGITS)

    _on_meta(train, model, size)


def check_task(run: StudentRun) -> None:
    """Raise `ConfigError` where a network is none for its task."""
    _on_meta(lambda: weights.build_network(run), run.model, None)


def check_parts(run: StudentRun, key: Literal["parts", "freeze"]) -> None:
    """Raise `ConfigError` where a key of `run.optim` names parts that the student lacks, or all."""
    words = _words(run, key)
    if run.method.trains == "helpers" or not words:
        return
    network = _on_meta(lambda: models.build(run.model, run.head), run.model, None)
    network_parts.check_named(words, run.model, network)
    if key == "freeze":
        backbone = run.method.trains == "backbone"
        network_parts.check_frozen(words, run.model, network, backbone=backbone)


def _words(run: StudentRun, key: Literal["parts", "freeze"]) -> tuple[str, ...]:
    """The parts that a key of `run.optim` names."""
    return run.optim.freeze if key == "freeze" else tuple(dict(run.optim.parts))


def check_method(
    run: StudentRun, student: Shapes, teacher: Shapes, targets: Tensor, *, shared: bool
) -> None:
    """Raise `ConfigError` where a method does not suit the two networks, or the student alone.

    `targets` (int64 [N]) have a label of each class that is trained on; `shared`: several workers
    are to hold a share of the weights each.
    """

    def make_helpers() -> None:
        helpers = run.method.helpers(student, teacher, targets)
        if not any(True for _ in helpers.parameters()):
            refuse_helpers(run)
        if shared:
            check_shares(helpers, run.method)
        if type(run.method).calibrate is not Method.calibrate:
            _calibrated(run, helpers)

    _on_meta(make_helpers, run.model, run.data.size)


def refuse_helpers(run: StudentRun) -> None:
    """Raise `ConfigError` where the optimiser names the helpers of a method that trains none."""
    keys: tuple[Literal["parts", "freeze"], ...] = ("parts", "freeze")
    for key in keys:
        if network_parts.HELPERS in _words(run, key):
            raise ConfigError(
                f"run.optim.{key} names helpers, and method {run.method.label!r} has none with "
                "parameters; leave them out"
            )


def check_shares(module: nn.Module, method: Method) -> None:
    """Raise `ConfigError` where workers cannot hold a share of each parameter."""
    scalars = [name for name, value in module.named_parameters() if not value.dim()]
    if scalars:
        raise ConfigError(
            f"scale.shard: {scalars[0]} of method {method.name!r} is one number, which cannot be "
            "shared out; choose ddp"
        )


def check_step(run: StudentRun, targets: Tensor, share: int) -> None:
    """Raise `ConfigError` where a step of `share` samples cannot be made, really.

    The method's own batch norms count, too, and whatever else a plugin does in a step.
    """
    some = run.model_copy(update={"optim": run.optim.model_copy(update={"batch": share})})
    try:
        step_of(some, targets, torch.device("cpu"))()
    except RaykdError:
        raise
    except Exception as error:
        if _ONE_VALUE in str(error):
            raise OneValue(f"a batch norm of method {run.method.label!r}") from error
        if not run.plugins:
            raise
        raise ConfigError(_of_plugin(run, error)) from error


def _of_plugin(run: StudentRun, error: Exception) -> str:
    """A sentence on an error in a step of a student with a plugin, and where it was raised."""
    ours = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if ours not in Path(frame.filename).parents][-1]
    return (
        f"a step of method {run.method.label!r} with {run.model} fails at {last.filename}, line "
        f"{last.lineno} ({type(error).__name__}: {text_of(error).splitlines()[0]}); mend the "
        "plugin, or choose networks and images that suit it"
    )


def _calibrated(run: StudentRun, helpers: nn.ModuleDict) -> None:
    """Let the method look at its teacher, for it may find that it cannot use it.

    What it computes there needs numbers that a tensor on the meta device does not have.
    """
    network = weights.build_network(run.members()[0]).eval()
    size = run.as_teacher_sees(run.data).resolved().size
    pixels = torch.zeros(2, 3, *size)
    try:
        run.method.calibrate(helpers, [network.outputs(pixels, run.method.needs())])
    except RaykdError:
        raise
    except Exception:  # whatever a tensor without numbers gives rise to
        return


def _on_meta(
    call: Callable[[], _Made], model: str, size: Size | None, remedy: str = _OTHER_SIZE
) -> _Made:
    """The result of a call on the meta device, or on the CPU where that cannot be.

    An error of the network's becomes a `ConfigError` that ends in `remedy`. Torch's generator stays
    as it was.
    """
    small = size is not None and models.is_small(model, size)
    devices = (nullcontext(),) if small else (on_meta(), nullcontext())
    for device in devices:
        try:
            with device, torch.random.fork_rng(devices=()):
                return call()
        except RaykdError:
            raise
        except Exception as error:
            unknown = isinstance(error, NotImplementedError) or _META in str(error)
            if unknown and device is not devices[-1]:
                continue
            raise _refusal(error, model, size, remedy) from error
    raise AssertionError


def _refusal(error: Exception, model: str, size: Size | None, remedy: str) -> ConfigError:
    """A sentence for a network's own error."""
    if _ONE_VALUE in str(error):
        return OneValue()
    reason = text_of(error).splitlines()[0].rstrip(".")
    sides = "x".join(map(str, size or ()))
    return ConfigError(f"{model} does not take images of {sides} pixels ({reason}); {remedy}")
