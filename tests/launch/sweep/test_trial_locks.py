"""Locks on artefacts among the trials of a sweep."""

import threading

import pytest

from raykd.core.errors import WorkFailed
from raykd.launch.sweep.trial_locks import TrialLocks, held, start

pytestmark = pytest.mark.ray


def test_an_artefact_has_one_holder_that_alone_can_release_it():
    locks = TrialLocks()
    assert locks.acquire("cache", "a") and locks.acquire("cache", "a")
    assert not locks.acquire("cache", "b")
    assert locks.acquire("teacher", "b")
    locks.release("cache", "b")
    assert not locks.acquire("cache", "b")
    locks.release("cache", "a")
    assert locks.acquire("cache", "b")


def test_a_trial_that_ended_holds_nothing_until_it_begins_again():
    locks = TrialLocks()
    locks.acquire("cache", "a")
    locks.end("a")
    assert locks.acquire("cache", "b") and locks.acquire("teacher", "a") is None
    locks.begin("a")
    assert locks.acquire("teacher", "a")


def test_the_second_waits_for_the_first(cluster):
    actor = start("test-locks")
    order: list[str] = []
    begun, waiting = threading.Event(), threading.Event()

    def work(trial: str, until: threading.Event) -> None:
        with held(actor, "cache", trial) as mine:
            assert mine
            order.append(f"{trial} begins")
            begun.set()
            until.wait()
            order.append(f"{trial} ends")

    first = threading.Thread(target=work, args=("a", waiting))
    first.start()
    begun.wait()
    with held(actor, "cache", "b", wait=False) as mine:
        assert not mine
    second = threading.Thread(target=work, args=("b", begun))
    second.start()
    waiting.set()
    first.join()
    second.join()
    assert order == ["a begins", "a ends", "b begins", "b ends"]
    cluster.get(actor.end.remote("c"))
    with pytest.raises(WorkFailed, match="trial c was stopped"), held(actor, "cache", "c"):
        pass
    cluster.kill(actor)
