"""The nouns of a report: plain values, of which `to_json` writes every field."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raykd.tasks import Classification
from raykd.tasks.base import HEADINGS
from raykd.training.finite import is_finite
from raykd.training.route_results import Decision


@dataclass(frozen=True)
class Summary:
    """One number of several runs. What takes more than one run is None for one."""

    n: int
    mean: float
    std: float | None  # sample standard deviation (n - 1)
    low: float | None  # ends of the 95 % t interval of the mean
    high: float | None


@dataclass(frozen=True)
class Run:
    """One network of the experiment, trained or not yet."""

    fingerprint: str  # the search's, while the run's route is open
    seed: int
    recipe: dict[str, Any]
    result: dict[str, Any] | None  # as `raykd.training.runs` writes it; None: not finished
    metrics: tuple[dict[str, Any], ...]  # every epoch so far: numbers, or dicts of lists of them
    anchors: tuple[int, ...] | None = None  # found so far, where its route is still to be found
    seconds: float | None = None  # duration of a finished run, with the stages before it

    def state(self) -> str:
        """Progress of the run."""
        if self.result is not None:
            return "finished" if self.is_finite() else "not finite"
        if self.anchors is not None:
            return f"searching, at anchor {self.anchors[-1]}"
        done, asked = len(self.metrics), self.recipe["optim"]["epochs"]
        return f"epoch {done} of {asked}" if done else "not started"

    def is_finite(self) -> bool:
        """True where the numbers of its result are; earlier versions finished others, too."""
        return self._is_finite

    @functools.cached_property
    def _is_finite(self) -> bool:
        return self.result is None or is_finite(self.result["last"])


@dataclass(frozen=True)
class Group:
    """A line of the table: a teacher, or students that are equal but for their seed.

    The numbers are those of the finished runs, None where there is none.
    """

    label: str
    network: str
    runs: tuple[Run, ...]  # all that were asked for
    parameters: int | None
    flops: int | None  # one image's forward; a multiply-add is two
    latency_ms: float | None  # one image's forward, median
    score: Summary | None  # the task's headline in percent, after the last epoch
    best: Summary | None  # percent, after the best epoch of each run
    validation: Summary | None  # percent of the validation images, after the last epoch
    agreement: Summary | None  # percent of the test images answered as the teacher does
    kl: Summary | None  # KL(teacher || student) on the test images, in nats
    gain: Summary | None  # score over the baseline's, seed by seed
    images_per_second: float | None  # median
    seconds: float | None  # mean of a run, with the stages before it
    hardware: tuple[str, ...]
    # What else the task measures, in percent, after the last epoch: by its heading.
    others: Mapping[str, Summary] = field(default_factory=dict)
    # "score" in percent and "source" of the same pair elsewhere, where the experiment names them.
    published: Mapping[str, Any] | None = None

    def finished(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    def is_complete(self) -> bool:
        """True if every run has a result."""
        return len(self.finished()) == len(self.runs)

    def is_ranked(self) -> bool:
        """True where it has a rank: every run has a result, of finite numbers."""
        return self.is_complete() and all(run.is_finite() for run in self.runs)

    def traced(self) -> list[Run]:
        """The runs that curves are of: the finished ones, or those in progress where none is.

        A teacher that was given has none.
        """
        return [run for run in self.finished() or self.runs if run.metrics]


@dataclass(frozen=True)
class RouteSearch:
    """A greedy search for anchors, as far as it is."""

    label: str
    fingerprint: str
    recipe: dict[str, Any]
    candidates: tuple[int, ...]  # the teacher's saved epochs
    anchors: tuple[int, ...]  # known so far, the last one to go to
    decisions: tuple[Decision, ...]
    complete: bool


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, whatever became of it."""

    name: str
    config: Mapping[str, Any]  # dotted key to a readable value
    fingerprint: str | None  # its student's; None: it trained none
    state: str
    error: str | None  # a sentence; None: it did not fail
    seconds: float | None
    epochs: int | None = None  # epochs that it has done
    asked: int | None = None  # epochs that were asked for
    value: float | None = None  # the deciding metric after those epochs
    score: float | None = None  # the headline after those epochs, in percent

    def progress(self) -> str:
        """Its state, with the epoch that a trial which did not finish has reached."""
        if self.epochs is None or self.asked is None or self.state == "finished":
            return self.state
        return f"{self.state} at epoch {self.epochs} of {self.asked}"


@dataclass(frozen=True)
class Drawn:
    """The search that an experiment's students are drawn by."""

    metric: str  # the deciding one, as "validation_top1"
    mode: str  # max or min
    axes: Mapping[str, str]  # dotted key -> how it is drawn: uniform, loguniform, randint, choice
    best: tuple[str, ...]  # fingerprints of the best trials, one for each method and network


@dataclass(frozen=True)
class Shared:
    """Total over all finished students, each thing once."""

    what: str
    together: int
    alone: int  # the sum of what each student would have needed by itself


@dataclass(frozen=True)
class Cost:
    """Costs of the experiment, each thing once."""

    forwards: int  # teacher outputs that the caches hold: views x rows
    bytes: int  # all caches together
    epochs: int  # summed over the finished students that learned from them
    teacher_seconds: float
    student_seconds: float  # sum over the finished students, with their stages and assistants
    shared: tuple[Shared, ...]
    hours: Mapping[str, float]  # seconds x workers of every finished training, by hardware


@dataclass(frozen=True)
class Report:
    """One experiment."""

    name: str
    teachers: tuple[Group, ...]  # and assistants: students that teach, and nothing else
    students: tuple[Group, ...]  # in the order of the experiment
    cost: Cost
    stages: tuple[Group, ...] = ()  # earlier links of chains: no lines of the table
    searches: tuple[RouteSearch, ...] = ()
    trials: tuple[Trial, ...] = ()
    baseline: str | None = None  # the line that gains are over; None: label_only, like for like
    metric: str = "top1"  # headline of the students' task
    drawn: Drawn | None = None  # None: no search

    @property
    def heading(self) -> str:
        """Heading of the score's column, as "top-1 %"."""
        return HEADINGS[self.metric]

    @property
    def measure(self) -> str:
        """Name of the score in a sentence, as "top-1"."""
        return self.heading.removesuffix(" %")

    @property
    def labelled(self) -> bool:
        """True where students answer for classes, and so can agree with a teacher."""
        return self.metric == Classification().headline

    @property
    def others(self) -> tuple[str, ...]:
        """Metrics of the task besides the headline that some student has: keys of `HEADINGS`."""
        headings = {heading for group in self.students for heading in group.others}
        return tuple(name for name, heading in HEADINGS.items() if heading in headings)

    def groups(self) -> tuple[Group, ...]:
        """All lines: of the teachers, and of the students, best first."""
        return (*self.teachers, *self.ranked())

    @property
    def foreground(self) -> tuple[Group, ...]:
        """The students of table and pictures: of a search, the best of each method and network."""
        if self.drawn is None:
            return self.students
        best = self.drawn.best
        return tuple(g for g in self.students if any(run.fingerprint in best for run in g.runs))

    @property
    def background(self) -> tuple[Group, ...]:
        """The other students, whose curves are faint."""
        shown = {id(group) for group in self.foreground}
        return tuple(group for group in self.students if id(group) not in shown)

    def shown(self) -> tuple[Group, ...]:
        """The lines of the table, best first."""
        behind = {id(group) for group in self.background}
        return tuple(group for group in self.groups() if id(group) not in behind)

    def ranked(self) -> tuple[Group, ...]:
        """The students by mean score, best first; at the end those that have no rank."""

        def place(group: Group) -> tuple[bool, float]:
            mean = group.score.mean if group.score else math.nan
            return not group.is_ranked(), math.inf if math.isnan(mean) else -mean

        return tuple(sorted(self.students, key=place))

    def called(self, group: Group) -> str:
        """Name of a group where no column names its network."""
        peers = self.students if group in self.students else self.teachers
        several = len({peer.network for peer in peers}) > 1
        return f"{group.label} {group.network}" if several else group.label


def heading_of(metric: str) -> str:
    """Heading of a metric's column, as "validation top-1 %"."""
    name = metric.removeprefix("validation_")
    return "validation " * (name != metric) + HEADINGS.get(name, name)
