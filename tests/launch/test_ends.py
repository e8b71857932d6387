"""A driver whose cluster dies, or that is told to end, ends: with a sentence and its status."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401  # which puts psutil on the path

from tests.launch.ray_head import FOREIGN, Head, end, processes
from tests.launch.ray_marks import RAY

pytestmark = [*RAY, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
PSUTIL: Any = importlib.import_module("psutil")
ENDS = 600.0  # seconds after which it does not end, whatever else goes on here

SCRIPT = """
import sys, time
from raykd.cli.shared import speaking
from raykd.launch import cluster
from raykd.launch.cluster import connected
from raykd.recipes import Optim
from raykd.config.scale import Scale
from raykd.storage.store import Store
from tests.small import prepare, student_run

def say(text):
    print(text, flush=True)

@speaking
def main(what, root):
    store = Store(root)
    if what == "fit":
        run = student_run(store, "label_only", optim=Optim(epochs=100000, batch=32))
        prepare(store, run)
    if what == "slow":
        cluster._DASHBOARD_SECONDS = 0.0  # no machine is as fast
    with connected(Scale(), say, 2):
        import ray
        from raykd.launch.train import fit
        say("up")
        if what == "fit":
            fit(store, run, 2, Scale(workers=2))
        else:
            ray.get(ray.remote(lambda: time.sleep(3600)).remote())

main(*sys.argv[1:])
"""


class Driver:
    """A process of its own that works with a cluster of its own, or joins one."""

    def __init__(self, home: Path, what: str, **settings: str) -> None:
        self.home = home
        environment = {k: v for k, v in os.environ.items() if k not in (*FOREIGN, "RAY_AUTH_MODE")}
        environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "RAYKD_STORE": str(home)}
        environment.pop("RAY_TMPDIR", None)
        environment |= settings
        self.text = home / "text"
        words = [sys.executable, "-c", SCRIPT, what, str(home / "store")]
        with self.text.open("w") as text:
            self._process = subprocess.Popen(
                words, env=environment, stdout=text, stderr=subprocess.STDOUT
            )

    def await_text(self, words: str) -> None:
        self._wait(lambda: words in self.text.read_text())

    def await_process(self, words: str) -> int:
        self._wait(lambda: self._begun(words))
        return self._begun(words)[0]

    def _begun(self, words: str) -> list[int]:
        # Not by their environment, over which processes of Ray write their titles.
        found = []
        for process in PSUTIL.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(PSUTIL.Error):
                found += [process.pid] if words in " ".join(process.cmdline()) else []
        return found

    def _wait(self, due) -> None:
        until = time.monotonic() + 600
        while not due():
            assert self._process.poll() is None and time.monotonic() < until, self.text.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """The status with which it ends, and what it has said."""
        return self._process.wait(timeout=ENDS), self.text.read_text()


@pytest.fixture
def begun(tmp_path):
    def begin(what: str) -> Driver:
        return Driver(tmp_path, what)

    yield begin
    end(tmp_path)


# The raylet ends by itself where its agent does.
@pytest.mark.parametrize("victim", ["gcs_server", "ray::DashboardAgent"])
def test_a_cluster_of_our_own_that_dies_is_a_sentence(begun, victim):
    driver = begun("wait")
    driver.await_text("up\n")
    os.kill(driver.await_process(victim), signal.SIGKILL)
    status, text = driver.end()
    assert status == 7, text
    assert "error: Ray's process " in text and "the same command goes on" in text
    assert "Traceback" not in text


def test_a_driver_whose_raylet_dies_ends_with_status_9():
    head = Head()
    try:
        [raylet] = head.processes("raylet/raylet ")
        address = (head.folder / "ray_current_cluster").read_text().strip()
        # The variable as a job inherits it; Ray would end the driver by it, without a sentence.
        settings = {"RAY_AUTH_MODE": "token", "RAY_RAYLET_PID": str(raylet)}
        driver = Driver(head.home, "wait", RAY_ADDRESS=address, **settings)
        driver.await_text("up\n")
        os.kill(raylet, signal.SIGKILL)
        status, text = driver.end()
    finally:
        head.end()
    assert status == 9, text
    assert f"error: the Ray node of this machine has left the cluster at {address}" in text
    assert "Traceback" not in text


def test_a_start_that_takes_too_long_is_tried_once_more_and_leaves_nothing(begun):
    driver = begun("slow")
    status, text = driver.end()
    assert status == 6, text
    assert text.count("trying once more") == 1
    assert "error: Ray did not start on this machine, 2 times, at last with: " in text
    assert "Traceback" not in text
    assert not processes(driver.home)


@pytest.mark.parametrize("what", ["init", "fit"])
def test_a_driver_that_waits_for_ray_ends_at_sigterm(begun, what):
    driver = begun(what)
    driver.await_text({"init": "starting Ray", "fit": "up\n"}[what])
    if what == "init":
        driver.await_process("gcs_server")
    if what == "fit":
        driver.await_process("ray::TrainController")
    driver.stop()
    status, text = driver.end()
    assert status == 143, text
    assert "stopped; what was finished is kept, and the same command goes on" in text
    assert "Traceback" not in text
