"""Locks on artefacts among the trials of a sweep, kept by one actor of Ray.

Trials learn late what they need, so what several of them need cannot all be made beforehand. The
first to ask makes it and the others wait, each with its own CPU, so that one always works. The
store's file locks are not enough: where the store is a URL they are those of one node, and two
nodes would write one manifest. The driver frees what a trial holds when Tune says that it ended.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.core.errors import WorkFailed

_POLL_SECONDS = 0.25


class TrialLocks:
    """The actor's state: which trial holds which artefact."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}  # artefact -> trial
        self._ended: set[str] = set()

    def acquire(self, artefact: str, trial: str) -> bool | None:
        """True if the trial holds the lock now, False if another does, None if the trial ended."""
        if trial in self._ended:
            return None
        return self._holders.setdefault(artefact, trial) == trial

    def release(self, artefact: str, trial: str) -> None:
        """Free an artefact, if this trial holds it."""
        if self._holders.get(artefact) == trial:
            del self._holders[artefact]

    def begin(self, trial: str) -> None:
        """Admit a trial, perhaps again."""
        self.end(trial)
        self._ended.discard(trial)

    def end(self, trial: str) -> None:
        """Free all that a trial holds, and refuse it more, though its process may go on."""
        self._ended.add(trial)
        self._holders = {what: who for what, who in self._holders.items() if who != trial}


def start(sweep: str) -> ActorHandle:
    """The locks of a sweep, on the driver's node; the actor lives as long as the handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(num_cpus=0, max_restarts=-1)(TrialLocks)
    options = {"name": _name(sweep), "get_if_exists": True, "scheduling_strategy": here}
    return kind.options(**options).remote()


def find(sweep: str) -> ActorHandle:
    """The locks of a running sweep."""
    return ray.get_actor(_name(sweep))


def _name(sweep: str) -> str:
    return f"raykd-trial-locks-{sweep}"


@contextlib.contextmanager
def held(locks: Any, artefact: str, trial: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold an artefact's lock; yields True if it is held.

    With `wait` False it yields False at once where another trial holds it. Raises `WorkFailed` if
    the trial was stopped.
    """
    while not (mine := ray.get(locks.acquire.remote(artefact, trial))):
        if mine is None:
            raise WorkFailed(f"trial {trial} was stopped")
        if not wait:
            yield False
            return
        time.sleep(_POLL_SECONDS)
    try:
        yield True
    finally:
        locks.release.remote(artefact, trial)
