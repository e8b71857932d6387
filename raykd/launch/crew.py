"""Whoever does a plan's work: this process, a pool of Ray workers, or Ray Train.

Ray is imported only where something is to run on it, so that `scale.workers: 0` needs none.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from raykd.config.scale import Scale, Workers, least, most
from raykd.core.errors import RaykdError, folded
from raykd.core.record import Recipe, fingerprint
from raykd.launch.cache_executor import Caching
from raykd.launch.peer_locks import Company
from raykd.planning.plan import CacheJob
from raykd.recipes import Search, TeacherRun, Training
from raykd.storage.store import Store
from raykd.tracking.console import EpochLines, Teller
from raykd.tracking.jsonl import following
from raykd.training.memory import keep_freed_memory
from raykd.training.route_search import decide
from raykd.training.runs import default_device, local_host, train

if TYPE_CHECKING:
    from raykd.launch.pool import Pool

_CLAIMS = 256  # students at a time, each of which holds a file open


class Crew:
    """Whoever does the work: this process, a pool of Ray workers, or Ray Train.

    One worker (`workers` 1) goes to the pool, more go to Ray Train, none stays here.
    """

    def __init__(
        self,
        name: str,
        scale: Scale,
        store: Store,
        teller: Teller,
        stack: contextlib.ExitStack,
        company: Company,
    ) -> None:
        self._name = name
        self._scale = scale
        self._store = store
        self._teller = teller
        self._stack = stack
        self._company = company
        self._pool: Pool | None = None
        self._connected = False
        self._caching = Caching(
            store, self._scale, teller, self._claimed, self._stay, self._workers
        )

    def train(self, jobs: Sequence[tuple[Training, Workers]]) -> None:
        """Train teachers, preludes or students with the given numbers of workers each.

        A failed one does not stop the others; their errors are raised at the end.
        """
        errors: list[RaykdError] = []
        # The pool's workers hold processors that Ray Train would wait for without end, so what
        # the pool does comes first, and the pool goes home before Ray Train starts.
        packed = [run for run, workers in jobs if most(workers) == 1]
        if packed:
            self._train_packed(packed, errors)
        for run, workers in jobs:
            if most(workers) != 1:
                with collected(errors):
                    self._train_one(run, workers)
        if errors:
            raise folded(errors)

    def precompute(
        self, jobs: Sequence[CacheJob], failed: dict[CacheJob, RaykdError]
    ) -> list[CacheJob]:
        """Fill the caches that lack views; returns which are filled now. See `Caching.fill`."""
        return self._caching.fill(jobs, failed, shared=self._company.shared)

    def decide(self, search: Search) -> None:
        """Choose the next anchor of a search, whose last stage is finished."""
        with self._claimed(search):
            if self._scale.workers == 0:
                self._stay()
                decide(self._store, search, default_device())
                return
            from raykd.launch.pool import Unit

            unit = Unit("decide", (search,), f"the next anchor of {describe(search.student)}")
            self._workers().run([unit])

    @contextlib.contextmanager
    def _claimed(self, recipe: Recipe) -> Iterator[bool]:
        """A region in which no one else makes this artefact; whether it waited for who did.

        Whoever does may need the processors that our pool holds, so it goes home meanwhile.
        """
        if not self._company.shared:
            with self._company.trying(recipe) as mine:
                if mine:
                    yield False
                    return
            self._dismiss()
        with self._company.claiming(recipe):
            yield True

    def _train_packed(self, runs: Sequence[Training], errors: list[RaykdError]) -> None:
        """One worker each, several at a time, in workers that are used again."""
        others: list[Training] = []
        for start in range(0, len(runs), _CLAIMS):
            with contextlib.ExitStack() as claims, collected(errors):
                some = runs[start : start + _CLAIMS]
                free = [run for run in some if claims.enter_context(self._company.trying(run))]
                others += [run for run in some if run not in free]
                self._pack(self._workers(), free)
        for run in others:  # what another driver was training is waited for when the rest is done
            with collected(errors), self._claimed(run):
                if not self._store.has(run):
                    self._pack(self._workers(), [run])

    def _pack(self, pool: "Pool", runs: Sequence[Training]) -> None:
        """Have a pool's workers train what nobody else does."""
        from raykd.launch.pool import Unit

        units = [Unit("train", (run,), describe(run)) for run in runs if not self._store.has(run)]
        watched: dict[Unit, contextlib.ExitStack] = {}

        def begun(unit: Unit) -> None:
            if unit not in watched:
                watched[unit] = contextlib.ExitStack()
                watched[unit].enter_context(self._watch(unit.arguments[0]))

        def done(unit: Unit, _: object) -> None:
            watched.pop(unit).close()

        try:
            pool.run(units, done, begun)
        finally:
            for stack in watched.values():
                stack.close()

    def _train_one(self, run: Training, workers: Workers) -> None:
        """Here, or on Ray Train."""
        with self._claimed(run), self._watch(run):
            if self._store.has(run):
                return  # whoever had the claim before has made it
            if workers == 0:
                self._stay()
                loggers = self._company.loggers
                with self._company.noticing() as notice:
                    host = local_host(self._store, run, self._scale, loggers, notice)
                    train(self._store, run, host)
                return
            self._dismiss()
            self._connect(most(workers))
            needed = (self._scale, least(workers), describe(run), self._teller.say)
            from raykd.launch.capacity import await_room, told_of_losses
            from raykd.launch.train import fit

            await_room(*needed)
            count = workers if isinstance(workers, int) else f"{workers[0]} to {workers[1]}"
            self._teller.say(f"{describe(run)}: starting {count} workers with Ray Train")
            names = (self._name, self._company.trial)
            with told_of_losses(*needed):
                fit(self._store, run, workers, self._scale, self._company.callbacks(run), names)

    def _watch(self, run: Training) -> contextlib.AbstractContextManager[None]:
        """Show a run's epochs while it is being trained."""
        return following(self._store, run, EpochLines(self._teller, describe(run)))

    def _stay(self) -> None:
        """Set this process up as a worker is, with `scale.cpus` threads."""
        torch.set_num_threads(max(1, int(self._scale.cpus)))
        keep_freed_memory()

    def _connect(self, processors: int) -> None:
        if not self._connected:
            from raykd.launch.cluster import connected

            context = connected(self._scale, self._teller.say, processors)
            self._stack.enter_context(context)
            self._connected = True

    def _workers(self) -> "Pool":
        if self._pool is None:
            self._connect(1)
            from raykd.launch.pool import Pool

            pool = Pool(self._store, self._scale, say=self._teller.say, experiment=self._name)
            self._pool = self._stack.enter_context(pool)
        return self._pool

    def _dismiss(self) -> None:
        if self._pool is not None:
            self._pool.__exit__()
            self._pool = None


def describe(run: Training) -> str:
    """A run in a few words, with the start of its fingerprint."""
    what = "teacher" if isinstance(run, TeacherRun) else run.method.label
    return f"{what} {run.model or 'of the teacher'} seed {run.seed} ({fingerprint(run)[:8]})"


@contextlib.contextmanager
def collected(errors: list[RaykdError]) -> Iterator[None]:
    """Keep an error of ours for later, so that other work goes on."""
    try:
        yield
    except RaykdError as error:
        errors.append(error)
