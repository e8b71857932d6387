"""The student's pass as one compiled function; its weights and their names stay as they are."""

from typing import Literal

import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Signal
from raykd.methods.base import Method
from raykd.models.staged import Staged, Through

Mode = bool | Literal["reduce-overhead", "max-autotune-no-cudagraphs"]  # as in a file's `scale`


def refusal(method: Method) -> str | None:
    """The reason why the student's pass cannot be compiled with a method; None where it can."""
    if method.trains == "helpers":
        return "the student has no part in it"
    if Signal.PIXELS in method.student_needs():
        return "its gradients are differentiated again"  # torch 2.15 compiles the first ones only
    return None


def compiled_as(method: Method, mode: Mode) -> Mode | str:
    """The entry of a result: the mode, or the reason why the pass was not compiled."""
    why = refusal(method)
    return mode if not mode or why is None else f"no: {why}"


def compiled_pass(student: Staged, mode: Mode) -> Through:
    """`student.through`, compiled when it is first called.

    What a method runs of the student besides, stage by stage, and the losses are not. Only one
    student of a process is compiled at a time. Raises `ConfigError` where there is no compiler.
    """
    torch.compiler.reset()  # or those of earlier students count towards torch's limit
    forward = torch.compile(
        student.through, mode=None if mode is True else str(mode), dynamic=False
    )

    def through(*arguments, **options):
        try:
            return forward(*arguments, **options)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # pyright: ignore[reportAttributeAccessIssue]
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"scale.compile: the student could not be compiled ({reason}); a C++ compiler is "
                "needed for a CPU, and Triton for a GPU. Leave scale.compile out to go without"
            ) from error

    return through
