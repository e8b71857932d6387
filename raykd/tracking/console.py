"""Messages and progress of a command: bars with an ETA on a terminal, plain lines in a log."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from raykd.core.safe_names import printable, printable_lines
from raykd.recipes import Training
from raykd.tasks.base import headline_of
from raykd.tracking.logger import Metrics

DIGITS = 4  # significant ones of a setting that was drawn

LINE_SECONDS = 10.0  # least time between two lines of a task, in a log


class Task:
    """Progress of one countable piece of work."""

    def __init__(self, terminal: "Terminal", label: str, total: int, unit: str) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._terminal = terminal
        self._unit = unit
        self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and value of the first update
        self._bar: TaskID | None = None
        if terminal.bars is not None:
            self._bar = terminal.bars.add_task(printable(label), total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """Move the bar; in a log, print a line at the end and at most every `LINE_SECONDS`."""
        self.done = done
        if self._bar is not None and self._terminal.bars is not None:
            self._terminal.bars.update(self._bar, completed=done, note=note)
            return
        now = time.monotonic()
        first, before = self._first = self._first or (now, done)
        if done < self.total and now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        parts = [f"{self.label}: {self._unit} {done}/{self.total}"]
        parts += [note] if note else []
        if before < done < self.total:
            # Extrapolated from the first update on, so that the start of workers does not count.
            left = (now - first) * (self.total - done) / (done - before)
            parts.append(f"{clock(left)} left")
        self._terminal.say(", ".join(parts))


class Terminal:
    """Output of a command for people: a terminal or a log."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.bars: Progress | None = None
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line; in a log it begins with the seconds since the start."""
        console = self.bars.console if self.bars is not None else self.console
        stamp = "" if self.console.is_terminal else f"[{time.monotonic() - self._started:6.1f} s] "
        console.print(stamp + printable_lines(text), markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Region whose tasks are bars, where this is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=False) as self.bars:
            try:
                yield
            finally:
                self.bars, _ = None, self.bars

    def task(self, label: str, total: int, unit: str) -> Task:
        """Progress of a new piece of work of `total` units."""
        return Task(self, label, total, unit)


class EpochLines:
    """Logger that shows the epochs of a training as a task of the terminal or the log."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        self._terminal = terminal
        self._label = label
        self._task: Task | None = None

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Show the training, and how far it is."""
        self._task = self._terminal.task(self._label, run.optim.epochs, "epoch")
        if history:
            self.epoch(run, history[-1])

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Show an epoch's accuracy and loss."""
        assert self._task is not None
        parts = headline_of(metrics), f"loss {metrics['loss']:.3f}"
        self._task.update(metrics["epoch"] + 1, ", ".join(filter(None, parts)))

    def end(self, run: Training, result: Metrics | None) -> None:
        """Nothing: the last epoch is shown."""


def clock(seconds: float) -> str:
    """A duration in readable units: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The value with that many significant digits in its fractions, as logs and tables have it."""
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
