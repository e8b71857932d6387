"""Baselines: the students that others are compared with, seed by seed."""

from collections.abc import Callable, Mapping, Sequence

from raykd.core.errors import ConfigError
from raykd.core.registry import nearest
from raykd.methods.label_only import LabelOnly
from raykd.recipes import StudentRun

Reference = Callable[[StudentRun], float | None]  # the number that a student's is compared with


def untaught(numbers: Mapping[StudentRun, float]) -> Reference:
    """Of a student, the number of the same training with the labels alone."""
    alone = {_untaught(run): x for run, x in numbers.items() if isinstance(run.method, LabelOnly)}

    def reference(run: StudentRun) -> float | None:
        return None if isinstance(run.method, LabelOnly) else alone.get(_untaught(run))

    return reference


def of_line(
    numbers: Mapping[StudentRun, float],
    lines: Mapping[tuple[str, str], Sequence[StudentRun]],
    wanted: str,
) -> Reference:
    """Of a student, the number of the same seed in the line that is `wanted`.

    `lines` are named by label and network. Where lines of several networks have the label, a
    student is compared with that of its own network. Raises `ConfigError` where none has it.
    """
    known = {f"{label} {network}": runs for (label, network), runs in lines.items()}
    chosen = [runs for (label, _), runs in lines.items() if label == wanted]
    chosen = chosen or [runs for name, runs in known.items() if name == wanted]
    if not chosen:
        names = dict.fromkeys(label for label, _ in lines)
        hint = nearest(wanted, [*names, *known]) or f"; there are: {', '.join(map(repr, names))}"
        raise ConfigError(f"baseline: no line of students is called {wanted!r}{hint}")
    own = dict.fromkeys(run for runs in chosen for run in runs)
    by_seed = {(run.model, run.seed): numbers[run] for run in own if run in numbers}
    networks = {run.model for run in own}

    def reference(run: StudentRun) -> float | None:
        network = run.model if len(networks) > 1 else next(iter(networks), "")
        return None if run in own else by_seed.get((network, run.seed))

    return reference


def _untaught(run: StudentRun) -> StudentRun:
    """Recipe of this training with the labels alone."""
    names = ("method", "label_weight", "teacher", "route", "after", "source", "teacher_precision")
    fields = StudentRun.model_fields
    return run.model_copy(update={name: fields[name].default for name in names})
