"""Who makes which artefact at the moment, among the trials of a sweep.

Trials find out late what they need, so what several of them need cannot all be made before. The
first to ask makes it and the others wait, each with its own processor, so that somebody always
works. A trial that dies lets go of what it has: it is not heard of any more.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykd.core.errors import WorkFailed

LEASE_SECONDS = 60.0  # without a sign of life
_RENEW_SECONDS = 5.0
_ASK_SECONDS = 0.25


class Claims:
    """The actor that keeps the list."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}  # what -> (who, until when)
        self._ended: set[str] = set()

    def take(self, what: str, who: str) -> bool | None:
        """Whether `who` may make it: nobody else does, or nobody that still lives.

        None where `who` is over itself.
        """
        if who in self._ended:
            return None
        owner, until = self._held.get(what, (who, 0.0))
        if owner != who and time.monotonic() < until:
            return False
        self._held[what] = (who, time.monotonic() + LEASE_SECONDS)
        return True

    def renew(self, who: str) -> None:
        """A sign of life."""
        for what, (owner, _) in self._held.items():
            if owner == who:
                self._held[what] = (who, time.monotonic() + LEASE_SECONDS)

    def release(self, what: str, who: str) -> None:
        """It is made, or given up."""
        if self._held.get(what, ("", 0.0))[0] == who:
            del self._held[what]

    def begin(self, who: str) -> None:
        """A trial starts, perhaps again."""
        self._ended.discard(who)

    def end(self, who: str) -> None:
        """A trial is over, whatever its process may still do."""
        self._ended.add(who)
        self._held = {what: held for what, held in self._held.items() if held[0] != who}


def start(sweep: str) -> ActorHandle:
    """A new list for a sweep, on the driver's node; it lives as long as the handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(Claims)
    own = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1}
    return kind.options(name=_name(sweep), get_if_exists=True, **own).remote()


def of(sweep: str) -> ActorHandle:
    """The list of a sweep that goes on."""
    return ray.get_actor(_name(sweep))


def _name(sweep: str) -> str:
    return f"raykd-claims-{sweep}"


@contextlib.contextmanager
def claimed(claims: Any, what: str, who: str) -> Iterator[None]:
    """A region in which no other trial makes `what`; it waits for who does already."""
    while not (mine := ray.get(claims.take.remote(what, who))):
        if mine is None:
            raise WorkFailed(f"trial {who} was stopped")
        time.sleep(_ASK_SECONDS)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(_RENEW_SECONDS):
            claims.renew.remote(who)

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        claims.release.remote(what, who)
