"""Rehearsal: the speed of an experiment's networks on this machine in each way of running them.

Steps of every student, and of every teacher that is trained here, are timed in float32 and
bfloat16, plain and compiled, and the forwards of teachers that fill caches with several numbers of
images at a time. What is fastest for the whole experiment is chosen, as if nothing of it were in
the store; a way that is within `LEAST` of the fastest and changes less is preferred.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from raykd.config.experiment import Experiment, basis
from raykd.core.errors import ConfigError
from raykd.planning.estimate import Rates, worker_threads
from raykd.planning.plan import CacheJob, plan
from raykd.recipes import StudentRun, training_of
from raykd.recipes.optim import Precision
from raykd.storage.store import Store
from raykd.training.compiled import Mode, refusal
from raykd.training.runs import default_device

LEAST = 0.05  # share of the time that a change has to save: times scatter
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_WORTH = 60.0  # seconds of all plain trainings below which none is compiled: that takes tens
_BATCHES = (1, 0.5, 2, 4)  # factors of the recipe's batch
_ANSWERED = (1, 0.25, 0.5, 2)  # factors of the teacher's batch
_FEWEST = 8  # views, where a student reads a cache alone
Choice = TypeVar("Choice", bound=tuple[object, ...])
_Say = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """One network of the experiment, run in one way."""

    kind: str  # "student" and "teacher": steps of a training; "cache": forwards
    network: str
    precision: Precision
    compiled: Mode
    batch: int
    images_per_second: float | None  # decoded images; None: it cannot be run so
    compile_seconds: float  # before the first step of a training
    seconds: float | None  # all of the experiment's work with this network, decoding included
    note: str = ""

    @property
    def label(self) -> str:
        """The way in words, as in "bfloat16, compiled, batch 64"."""
        parts = [self.precision, "compiled" if self.compiled is True else self.compiled]
        return ", ".join([str(part) for part in parts if part] + [f"batch {self.batch}"])

    @property
    def speed(self) -> str:
        """Images per second with their unit, or the reason why there are none."""
        rate = self.images_per_second
        if rate is None:
            return self.note
        return f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"


@dataclass(frozen=True)
class Schedule:
    """The cost of a student's training with some number of views."""

    student: str
    views: str  # "all", "a half", "a quarter" or "live"
    passes: int  # the teacher's, over the images, for all students that share the cache
    seconds: float  # one student alone, its teacher's passes included
    students: int  # that share the cache
    shared_seconds: float  # each of them
    over_live: float  # the same over asking the live teacher in each step


@dataclass(frozen=True)
class Rehearsal:
    """Speeds, costs, and the values of an experiment file's keys that are fastest."""

    ways: tuple[Way, ...]
    schedules: tuple[Schedule, ...]
    choices: dict[str, Any]  # by dotted key of the file, without those that stay as they are
    batch: dict[str, int] = field(default_factory=dict)  # the faster run.optim.batch, if any


def rehearse(experiment: Experiment, store: Store, say: _Say = lambda text: None) -> Rehearsal:
    """Time all ways of running a resolved experiment, and choose; a second or so for each of them.

    Compilation takes a minute a network on some machines. `say` is called with a line for each.
    """
    with worker_threads(experiment.scale):
        return _Rehearsing(experiment, Rates(store, experiment.scale), say).outcome()


def few_views(experiment: Experiment) -> dict[str, int]:
    """The value of `run.views` for students that read their caches alone: a quarter of the epochs,
    at least 8.

    Empty where students share a cache, where the file has `run.views`, and where that were no
    fewer. (CIFAR-10, 32 epochs: a quarter could not be told from all; experiments/README.md.)
    """
    if "run.views" in experiment.places or (experiment.space and experiment.space.search):
        return {}
    runs = [run for run in _students(experiment) if _reads_cache(run)]
    counts = {max(_FEWEST, run.optim.epochs // 4) for run in runs}
    fewer = all(run.views == "all" and min(counts) < run.view_count() for run in runs)
    alone = all(_sharing(run, runs) == 1 for run in runs)
    return {"run.views": counts.pop()} if len(counts) == 1 and fewer and alone else {}


def fastest(costs: Mapping[Choice, float], current: Choice) -> Choice:
    """The choice with the fewest changes of `current` among those within `LEAST` of the fastest."""
    bound = min(costs.values()) / (1 - LEAST)

    def changes(choice: Choice) -> int:
        return sum(one != other for one, other in zip(choice, current, strict=True))

    near = [choice for choice, cost in costs.items() if cost <= bound]
    return min(near, key=lambda choice: (changes(choice), costs[choice]))


class _Rehearsing:
    """The measurements of a rehearsal, and what follows from them."""

    def __init__(self, experiment: Experiment, rates: Rates, say: _Say) -> None:
        self._scale, self._rates, self._say = experiment.scale, rates, say
        self._runs = _students(experiment)
        work = plan(self._runs)
        trained = [training_of(run) for run in work.teachers if not run.is_given]
        self._groups = {"student": _alike(work.students), "teacher": _alike(trained)}
        self._caches = [job for job in work.caches if job.run.split == "train"]
        self._views = few_views(experiment)
        self._ways: list[Way] = []
        self._choices: dict[str, Any] = {}

    def outcome(self) -> Rehearsal:
        """All measurements, and the choices."""
        self._choose_trainings()
        self._choose_forwards()
        batch = self._faster_batch()
        schedules = [s for group in self._groups["student"] for s in self._schedules(group[0])]
        cost = {
            views: sum(s.seconds for s in schedules if s.views == views)
            for views in ("all", "a quarter")
        }
        if self._views and cost["a quarter"] <= (1 - LEAST) * cost["all"]:
            self._choices |= self._views
        return Rehearsal(tuple(self._ways), tuple(schedules), self._choices, batch)

    def _choose_trainings(self) -> None:
        """Time the steps of all trainings, and choose their precisions and compilation."""
        plain = self._costs((False,))
        total = sum(min(cost.values()) for cost in plain.values())
        modes: dict[Mode, None] = dict.fromkeys((False, self._scale.compile))
        if total >= _WORTH:
            modes |= {True: None}
            modes |= {"reduce-overhead": None} if default_device().type == "cuda" else {}
        costs = self._costs(modes)
        joint = {
            (one, other, mode): costs["student"][one, mode] + costs["teacher"][other, mode]
            for one in self._precisions("student")
            for other in self._precisions("teacher")
            for mode in modes
        }
        current = (self._precision("student"), self._precision("teacher"), self._scale.compile)
        keys = ("run.precision", "run.teacher.precision", "scale.compile")
        self._take(keys, fastest(joint, current), current)

    def _costs(self, modes: Iterable[Mode]) -> dict[str, dict[tuple[Precision, Mode], float]]:
        """Seconds of all trainings of a kind, by kind, precision and mode."""
        return {
            kind: {
                (precision, mode): sum(self._step(kind, group, precision, mode) for group in groups)
                for precision in self._precisions(kind)
                for mode in modes
            }
            for kind, groups in self._groups.items()
        }

    def _choose_forwards(self) -> None:
        """Time the forwards that fill caches, and choose their precision and number of images."""
        if not self._caches:
            return
        usual = [self._rates.answered_at_once(job.run) for job in self._caches]
        given = self._scale.teacher_batch
        counts = [given or 0, *(max(1, int(part * min(usual))) for part in _ANSWERED[1:])]
        jobs = [*zip(self._caches, usual, strict=True)]
        costs = {
            (precision, count): sum(self._forward(job, precision, count or n) for job, n in jobs)
            for precision in self._precisions("cache")
            for count in dict.fromkeys((0, *counts))
        }
        current = (self._precision("cache"), given or 0)
        precision, count = fastest(costs, current)
        keys = ("run.teacher_precision", "scale.teacher_batch")
        self._take(keys, (precision, count or None), (current[0], given))

    def _faster_batch(self) -> dict[str, int]:
        """Time other batches of the students as they were chosen, not compiled; the faster one."""
        precision = self._choices.get("run.precision", self._precision("student"))
        batches = {run.optim.batch for run in self._runs}
        if len(batches) > 1:
            return {}
        (batch,) = batches
        costs: dict[tuple[int], float] = {}
        for part in _BATCHES:
            size = max(2, int(part * batch))
            costs[size,] = sum(
                self._step("student", _with_batch(group, size), precision, False)
                for group in self._groups["student"]
            )
        (chosen,) = fastest(costs, (batch,))
        return {} if chosen == batch else {"run.optim.batch": chosen}

    def _step(
        self, kind: str, group: Sequence[StudentRun], precision: Precision, mode: Mode
    ) -> float:
        """Note the steps of a training in one way; seconds of all trainings of a group in it."""
        run = group[0].model_copy(update={"precision": precision})
        why = refusal(run.method) if mode else None
        try:
            measured = self._rates.step(run, False if why else mode)
        except (ConfigError, RuntimeError) as error:  # no compiler, no room
            if not mode and any(run == own[0] for own in self._groups[kind]):  # as in the file
                raise
            note = str(error).strip().splitlines()[0]
            self._note(Way(kind, run.model, precision, mode, run.optim.batch, None, 0, None, note))
            return float("inf")
        start = measured.start if mode and not why else 0.0
        each = self._rates.with_decoding(measured.image, run.shown())
        images = sum(self._rates.images(one) * one.optim.epochs for one in group)
        seconds = images * each + len(group) * start
        speed, note = 1 / measured.image, f"not compiled: {why}" if why else ""
        way = (kind, run.model, precision, mode, run.optim.batch)
        self._note(Way(*way, speed, start, seconds, note))
        return seconds

    def _forward(self, job: CacheJob, precision: Precision, count: int) -> float:
        """Note a cache's forwards in one way; seconds of all of them."""
        run = job.run.model_copy(update={"precision": precision})
        way = ("cache", run.teacher.model, precision, False, count)
        try:
            measured = self._rates.answer(run, count)
        except RuntimeError as error:  # no room
            self._note(Way(*way, None, 0, None, str(error).strip().splitlines()[0]))
            return float("inf")
        rows = len(job.views) * self._rates.rows(run)
        seconds = rows * self._rates.with_decoding(measured.image, run.data)
        self._note(Way(*way, 1 / measured.image, 0.0, seconds))
        return seconds

    def _schedules(self, run: StudentRun) -> Iterator[Schedule]:
        """The costs of a student by its number of views, in the ways that were chosen."""
        if not _reads_cache(run):
            return
        mode = self._choices.get("scale.compile", self._scale.compile)
        sharing, epochs = _sharing(run, self._runs), run.optim.epochs
        keys = ("precision", "teacher_precision")
        chosen = {key: self._choices.get(f"run.{key}", getattr(run, key)) for key in keys}
        run = run.model_copy(update=chosen)
        images = self._rates.images(run)

        def seconds(source: Literal["auto", "live"]) -> float:
            variant = run.model_copy(update={"source": source})
            measured = self._rates.step(variant, mode)
            each = self._rates.with_decoding(measured.image, run.shown())
            return images * epochs * each + (measured.start if mode else 0.0)

        cached, live = seconds("auto"), seconds("live")
        count = self._choices.get("scale.teacher_batch", self._scale.teacher_batch)
        each = sum(
            self._rates.with_decoding(self._rates.answer(cache, count).image, cache.data)
            for look in run.method.looks().teacher
            for cache in run.caches_at(0, look)
        )
        most = run.model_copy(update={"views": "all"}).view_count()
        for views, part in (("all", 1), ("a half", 2), ("a quarter", 4)):
            passes = min(most, max(_FEWEST, epochs // part))
            teacher = passes * images * each
            shared = cached + teacher / sharing
            costs = (cached + teacher, sharing, shared, shared / live)
            yield Schedule(run.model, views, passes, *costs)
        yield Schedule(run.model, "live", epochs * sharing, live, sharing, live, 1.0)

    def _precisions(self, kind: str) -> list[Precision]:
        """The precisions to try; those of the recipes where the file has no one key for them."""
        given = self._given(kind)
        members = [member for run in self._runs for member in run.members()]
        single = kind != "teacher" or all(run.teacher in (None, *members) for run in self._runs)
        return [*PRECISIONS] if len(given) == 1 and single else given[:1]

    def _precision(self, kind: str) -> Precision:
        return self._given(kind)[0]

    def _given(self, kind: str) -> list[Precision]:
        """The precisions that the recipes have."""
        if kind == "cache":
            return [*dict.fromkeys(run.teacher_precision for run in self._runs)]
        found: dict[Precision, None] = {
            run.precision: None for group in self._groups[kind] for run in group
        }
        return [*found] or [*PRECISIONS[:1]]

    def _take(self, keys: Sequence[str], chosen: Sequence[Any], current: Sequence[Any]) -> None:
        """Keep the choices that differ from what there is."""
        pairs = zip(keys, chosen, current, strict=True)
        self._choices |= {key: value for key, value, before in pairs if value != before}

    def _note(self, way: Way) -> None:
        """Keep a measurement, and say it."""
        if way in self._ways:
            return
        self._ways.append(way)
        self._say(f"{way.kind} {way.network}, {way.label}: {way.speed}")


def _students(experiment: Experiment) -> list[StudentRun]:
    """The students of an experiment; of a search for a route the one that it trains."""
    return [basis(run) for run in experiment.runs]


def _reads_cache(run: StudentRun) -> bool:
    """True for a student whose teacher answers from a cache."""
    return bool(run.teacher is not None and run.method.needs() and run.cached())


def _sharing(run: StudentRun, runs: Iterable[StudentRun]) -> int:
    """Number of those of some students that read what a cached student reads."""

    def answers(run: StudentRun) -> list[object]:
        caches = run.caches_at(0)
        return [(cache.teacher, cache.data, cache.precision) for cache in caches]

    own = answers(run)
    return sum(_reads_cache(other) and answers(other) == own for other in runs)


def _alike(runs: Iterable[StudentRun]) -> list[list[StudentRun]]:
    """Trainings by network, size of images and batch; in each group those with teachers first."""
    groups: dict[Hashable, list[StudentRun]] = {}
    for run in runs:
        key = (run.model, run.head, run.data.resolved().size, run.optim.batch, run.optim.freeze)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: not run.method.needs()) for group in groups.values()]


def _with_batch(group: Iterable[StudentRun], batch: int) -> list[StudentRun]:
    """The same students with another batch."""
    return [
        run.model_copy(update={"optim": run.optim.model_copy(update={"batch": batch})})
        for run in group
    ]
