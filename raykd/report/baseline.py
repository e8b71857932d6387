"""Baselines: the students that others are compared with, seed by seed."""

from collections.abc import Callable, Mapping, Sequence

from raykd.core.errors import ConfigError
from raykd.core.registry import nearest
from raykd.methods.label_only import LabelOnly
from raykd.recipes import StudentRun

Reference = Callable[[StudentRun], float | None]  # the number that a student's is compared with


def untaught(numbers: Mapping[StudentRun, float]) -> Reference:
    """Reference: the number of the same training with the labels alone."""
    alone = {_untaught(run): x for run, x in numbers.items() if isinstance(run.method, LabelOnly)}

    def reference(run: StudentRun) -> float | None:
        return None if isinstance(run.method, LabelOnly) else alone.get(_untaught(run))

    return reference


def of_line(
    numbers: Mapping[StudentRun, float],
    lines: Mapping[tuple[str, str], Sequence[StudentRun]],
    baseline: str,
) -> Reference:
    """Reference: the number of the same seed in the line of students called `baseline`.

    `lines` are named by label and network. Where lines of several networks have the label, a
    student is compared with that of its own network. Raises `ConfigError` where none has it.
    """
    by_name = {f"{label} {network}": runs for (label, network), runs in lines.items()}
    matches = [runs for (label, _), runs in lines.items() if label == baseline]
    matches = matches or [runs for name, runs in by_name.items() if name == baseline]
    if not matches:
        names = dict.fromkeys(label for label, _ in lines)
        hint = nearest(baseline, [*names, *by_name])
        hint = hint or f"; there are: {', '.join(map(repr, names))}"
        raise ConfigError(f"baseline: no line of students is called {baseline!r}{hint}")
    baselines = dict.fromkeys(run for runs in matches for run in runs)
    by_seed = {(run.model, run.seed): numbers[run] for run in baselines if run in numbers}
    networks = {run.model for run in baselines}

    def reference(run: StudentRun) -> float | None:
        network = run.model if len(networks) > 1 else next(iter(networks), "")
        return None if run in baselines else by_seed.get((network, run.seed))

    return reference


def _untaught(run: StudentRun) -> StudentRun:
    """Recipe of this training with the labels alone."""
    names = ("method", "label_weight", "teacher", "route", "after", "source", "teacher_precision")
    fields = StudentRun.model_fields
    return run.model_copy(update={name: fields[name].default for name in names})
