"""Who makes what among the trials of a sweep."""

import threading
import time

import pytest

from raykd.core.errors import WorkFailed
from raykd.launch.sweep import leases as claims_module
from raykd.launch.sweep.leases import Claims, claimed, start

pytestmark = pytest.mark.ray


def test_one_at_a_time_and_each_its_own():
    held = Claims()
    assert held.take("cache", "a") and held.take("cache", "a")
    assert not held.take("cache", "b")
    assert held.take("teacher", "b")
    held.release("cache", "b")  # which is not b's
    assert not held.take("cache", "b")
    held.release("cache", "a")
    assert held.take("cache", "b")


def test_who_is_not_heard_of_lets_go(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now[0])
    held = Claims()
    held.take("cache", "a")
    now[0] = claims_module.LEASE_SECONDS - 1
    held.renew("a")
    now[0] += 2
    assert not held.take("cache", "b")
    now[0] += claims_module.LEASE_SECONDS
    assert held.take("cache", "b")


def test_who_is_over_lets_go_and_takes_nothing_more():
    held = Claims()
    held.take("cache", "a")
    held.end("a")
    assert held.take("cache", "b") and held.take("teacher", "a") is None
    held.begin("a")
    assert held.take("teacher", "a")


def test_the_second_waits_for_the_first(cluster):
    actor = start("raykd-test-claims")
    order: list[str] = []

    def work(who: str, seconds: float) -> None:
        with claimed(actor, "cache", who):
            order.append(f"{who} begins")
            time.sleep(seconds)
            order.append(f"{who} ends")

    first = threading.Thread(target=work, args=("a", 1.0))
    first.start()
    while not order:
        time.sleep(0.01)
    work("b", 0.0)
    first.join()
    assert order == ["a begins", "a ends", "b begins", "b ends"]
    cluster.get(actor.end.remote("c"))
    with pytest.raises(WorkFailed, match="trial c was stopped"), claimed(actor, "cache", "c"):
        pass
    cluster.kill(actor)
