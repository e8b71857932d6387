"""The nouns of a report: plain values, of which `to_json` writes every field."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """One number of several runs. What takes more than one run is None for one."""

    n: int
    mean: float
    std: float | None  # of the sample (n - 1)
    low: float | None  # ends of the 95 % t interval of the mean
    high: float | None


@dataclass(frozen=True)
class Run:
    """One network of the experiment, trained or not yet."""

    fingerprint: str
    seed: int
    recipe: dict[str, Any]
    result: dict[str, Any] | None  # as `raykd.engine.fit` writes it; None: not finished
    metrics: tuple[dict[str, Any], ...]  # of every epoch so far: numbers, or dicts of lists of them

    def state(self) -> str:
        """How far it is."""
        if self.result is not None:
            return "finished"
        done, asked = len(self.metrics), self.recipe["optim"]["epochs"]
        return f"epoch {done} of {asked}" if done else "not started"


@dataclass(frozen=True)
class Group:
    """A line of the table: a teacher, or students that are equal but for their seed.

    The numbers are those of the finished runs, None where there is none.
    """

    label: str
    network: str
    runs: tuple[Run, ...]  # all that were asked for
    parameters: int | None
    top1: Summary | None  # percent, after the last epoch
    best: Summary | None  # percent, after the best epoch of each run
    agreement: Summary | None  # percent of the test images answered as the teacher does
    kl: Summary | None  # KL(teacher || student) on the test images, in nats
    gain: Summary | None  # of top-1 over label_only with the same settings, seed by seed
    images_per_second: float | None  # median
    seconds: float | None  # mean of a run
    hardware: tuple[str, ...]

    def finished(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    def traced(self) -> list[Run]:
        """The runs that curves are of: the finished ones, or those in progress where none is."""
        return self.finished() or [run for run in self.runs if run.metrics]


@dataclass(frozen=True)
class Cost:
    """What the experiment took."""

    forwards: int  # teacher outputs that the caches hold: views x rows
    bytes: int  # of the caches
    epochs: int  # of the finished students that learned from them
    teacher_seconds: float
    student_seconds: float  # sum over the finished students


@dataclass(frozen=True)
class Report:
    """One experiment."""

    name: str
    teachers: tuple[Group, ...]
    students: tuple[Group, ...]
    cost: Cost

    def groups(self) -> tuple[Group, ...]:
        """The lines of the table."""
        return (*self.teachers, *self.students)

    def called(self, group: Group) -> str:
        """What to call a group where no column names its network."""
        peers = self.students if group in self.students else self.teachers
        several = len({peer.network for peer in peers}) > 1
        return f"{group.label} {group.network}" if several else group.label
