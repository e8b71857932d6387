"""Processes that decode: every wait for them ends, whatever becomes of them."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from raykd.core.errors import NoRoom, WorkFailed
from raykd.data.dataset import open_images
from raykd.data.loading import decode_workers
from raykd.data.loading.loader import Views
from tests.data.files import encoded, put
from tests.data.photos import photos, streamed

ROWS = torch.arange(24).repeat(20).view(-1, 4)  # many more batches than are ready at a time
MORE = r"--shm-size=8g\), or set fewer scale\.decoders or a smaller batch"
KILLED = "a decoding process was killed, most likely since memory ran out: each of 2 has 3 batches"
ENDS = {
    signal.SIGKILL: (WorkFailed, KILLED + ".*set fewer scale.decoders or a smaller batch"),
    signal.SIGBUS: (
        NoRoom,
        "/dev/shm is full, where decoding processes put their batches.*" + MORE,
    ),
    signal.SIGSEGV: (WorkFailed, "a decoding process ended by SIGSEGV; it may have said above why"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("decoding") / "photos")


@pytest.fixture
def views(store, root):
    data = streamed(store, root)
    return Views(open_images(store, data)[0], data, decoders=2)


def helpers(word: str) -> list[int]:
    """This process's own children whose command has a word."""
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    pids = [int(pid) for pid in task.read_text().split()]
    return [pid for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_text()]


def all_end(children) -> None:
    for child in children:
        child.join(600)
        assert not child.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in [*ENDS][1:])]
)
def test_a_decoding_process_that_ends_is_a_sentence_and_the_next_ones_go_on(views, end):
    batches = views.batches(ROWS, 0, 0)
    next(batches)
    before = {*multiprocessing.active_children()}
    os.kill(max(child.pid or 0 for child in before), end)
    kind, says = ENDS[end]
    with pytest.raises(kind, match=says):
        list(batches)
    all_end(before)
    assert len(list(views.batches(ROWS[:8], 0, 0))) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:resource_tracker")
@pytest.mark.parametrize("word", ["forkserver", "resource_tracker"])
def test_a_helper_of_multiprocessing_that_is_killed_does_not_hang_the_run(views, word):
    batches = views.batches(ROWS, 0, 0)
    next(batches)
    for pid in helpers(word):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(WorkFailed):
        assert len(list(batches)) == len(ROWS) - 1
    assert len(list(views.batches(ROWS[:8], 0, 0))) == 8


@pytest.mark.slow
def test_a_process_that_gives_no_sign_of_life_is_not_waited_for_without_end(views, monkeypatch):
    others = {*multiprocessing.active_children()}  # decoders of views that another test still holds
    batches = views.batches(ROWS, 0, 0)
    next(batches)
    monkeypatch.setattr(decode_workers, "TIMEOUT_SECONDS", 3.0)
    children = {*multiprocessing.active_children()} - others
    for child in children:
        os.kill(child.pid or 0, signal.SIGSTOP)
    with pytest.raises(WorkFailed, match="no batch came from 2 decoding processes for 0 minutes"):
        list(batches)
    all_end(children)


def test_shared_memory_is_looked_at_before_anything_is_decoded(views, tmp_path, monkeypatch):
    with pytest.raises(NoRoom) as error:
        decode_workers.check_shared_memory(10**18, 3)
    message = str(error.value)
    assert (
        message.startswith("/dev/shm has ")
        and "that 3 decoding processes have ready need" in message
    )
    assert "1,000,000,000,000.0 MB" in message and message.endswith(
        "fewer scale.decoders or a smaller batch"
    )
    requested: list[int] = []
    monkeypatch.setattr(
        decode_workers, "check_shared_memory", lambda needs, count: requested.append(needs)
    )
    frames = 4 * 3 * 24 * 24
    next(views.batches(ROWS, 0, 0))
    next(views.batches(ROWS[:2], 0, 0))  # needs less
    assert len(requested) == 1 and 7 * frames < requested[0] < 7 * frames + 10_000
    monkeypatch.setattr(decode_workers, "SHARED", tmp_path / "nowhere")  # as on a Mac
    decode_workers.check_shared_memory(10**18, 3)


@pytest.mark.slow
def test_shared_memory_that_is_full_later_is_a_sentence(views):
    next(views.batches(ROWS, 0, 0))
    # A limit of the size of files holds for shared memory, too.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for child in multiprocessing.active_children():
        resource.prlimit(child.pid or 0, resource.RLIMIT_FSIZE, (1000, before[1]))
    with pytest.raises(NoRoom, match=f"/dev/shm is full, where .*{MORE} \\("):
        list(views.batches(ROWS, 1, 0))


@pytest.mark.slow
def test_too_little_memory_in_a_decoding_process_is_a_sentence(store, tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"):
        put(tmp_path / "large" / name, encoded(Image.new("RGB", (6000, 6000)), "JPEG"))
    data = streamed(store, tmp_path / "large")
    views = Views(open_images(store, data)[0], data, decoders=1)
    before = {*multiprocessing.active_children()}
    next(views.batches(torch.tensor([[0]]), 0, 0))
    [child] = {*multiprocessing.active_children()} - before
    used = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(child.pid or 0, resource.RLIMIT_AS, (used, used))
    with pytest.raises(WorkFailed, match="not enough memory to decode its 6000 x 6000 pixels; set"):
        next(views.batches(torch.tensor([[1]]), 0, 0))


WORK = """
import os, signal, sys, time
import multiprocessing
import torch
from raykd.core import shutdown as ending
from raykd.cli.shared import speaking
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.storage.store import Store
from tests.data.photos import streamed
import click

@click.command()
@speaking
def work():
    store = Store(sys.argv[1])
    data = streamed(store, sys.argv[2])
    views = Views(open_images(store, data)[0], data, decoders=2)
    with ending.noticed() as notice:
        batches = views.batches(torch.arange(24).repeat(20).view(-1, 4), 0, 0)
        for _ in range(2):  # the first of each decoder, which is then deaf to SIGTERM
            next(batches)
        children = [child.pid for child in multiprocessing.active_children()]
        if sys.argv[3] == "stopped":
            for child in children:
                os.kill(child, signal.SIGSTOP)
        print(*children, flush=True)
        while not notice.given():
            next(batches)
            time.sleep(0.1)
        for _ in range(20 if sys.argv[3] == "stopped" else 1):  # more than are decoded ahead
            next(batches)
        print("kept", flush=True)
        notice.heeded()

if __name__ == "__main__":
    ending.SECONDS, ending.ORDERLY_SECONDS = (3.0 if sys.argv[3] == "stopped" else 600.0), 1.0
    work([])
"""


@pytest.mark.slow
@pytest.mark.parametrize("decoders", ["stopped", "alive"])
def test_sigterm_to_all_of_a_run_s_processes_ends_them(tmp_path, root, decoders):
    script = put(tmp_path / "work.py", WORK)
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, str(script), str(tmp_path / "store"), str(root), decoders]
    with subprocess.Popen(
        words, env=here, stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        children = run.stdout.readline().split()
        assert len(children) == 2
        os.killpg(run.pid, signal.SIGTERM)
        kept, errors = run.communicate(timeout=600)
    assert run.returncode == 143, errors
    assert kept == ("kept\n" if decoders == "alive" else "")
    assert "finished is kept, and the same command goes on" in errors and "Traceback" not in errors
    for child in children:
        until = time.monotonic() + 600
        while running(child) and time.monotonic() < until:
            time.sleep(0.1)
        assert not running(child)


def running(pid: str) -> bool:
    """Whether a process is there, and not only its status."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
