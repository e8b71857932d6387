"""A plan on a real Ray cluster: packed, on Ray Train, and with workers that are killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from raykd.config.experiment import Experiment
from raykd.config.scale import Rule, Scale
from raykd.core.errors import CacheCorrupt, NoRoom, WorkFailed
from raykd.launch.executor import execute
from raykd.launch.pool import Pool, artefact_maker
from raykd.launch.train import fit
from raykd.launch.units import Unit
from raykd.methods.crd import CRD
from raykd.methods.sakd import SAKD
from raykd.recipes import Optim, StudentRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import read_metrics
from raykd.training.cache_builder import CacheBuild
from raykd.training.inputs import open_cache
from tests.launch.ray_marks import RAY
from tests.small import CPU, digits, prepare, student_run, teacher_run, train_logits, trained

pytestmark = [*RAY, pytest.mark.timeout(900)]
QUIET = Terminal(quiet=True)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def processes(title: str) -> list[int]:
    """The ids of this cluster's worker processes whose title contains `title`."""
    own = f"RAY_AUTH_TOKEN_PATH={os.environ['RAY_AUTH_TOKEN_PATH']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if words.startswith("ray::") and title in words and own in variables:
                found.append(int(folder.name))
    return found


class Killer(threading.Thread):
    """Kills one process of a title with SIGKILL, `times` times, each when `due` says so."""

    def __init__(self, title: str, due, times: int = 1) -> None:
        super().__init__(daemon=True)
        self.title, self.due, self.times = title, due, times
        self.killed: list[int] = []
        self.start()

    def run(self) -> None:
        while len(self.killed) < self.times:
            time.sleep(0.05)
            victims = [pid for pid in processes(self.title) if pid not in self.killed]
            if victims and self.due(len(self.killed)):
                os.kill(victims[0], signal.SIGKILL)
                self.killed.append(victims[0])


def weights(store: Store, run) -> bytes:
    return (store.path(run) / "weights.safetensors").read_bytes()


def test_packed_students_equal_those_trained_here(cluster, store, tmp_path):
    # Of the caches one has embeddings too, one the mixed samples, and one what heads say that a
    # prelude has trained; "ft" has a prelude, too.
    names = ("label_only", "kd", "skd", "crd", "ft", "stkd", "sakd", "multi_head_kd")
    runs = tuple(student_run(store, name) for name in names)
    outcome = execute(Experiment("small", runs, Scale(workers=1)), store, QUIET)
    assert outcome.made == {"teachers": 1, "caches": 4, "preludes": 2, "students": 8}
    here = Store(tmp_path / "here")
    digits(here, limit=96)
    prepare(here, *runs)
    for run in runs:
        assert weights(store, run) == trained(here, run)
    again = execute(Experiment("small", runs, Scale(workers=1)), store, QUIET)
    assert again.made == {"teachers": 0, "caches": 0, "preludes": 0, "students": 0}


def test_a_killed_actor_costs_only_its_own_shard(cluster, store):
    run = student_run(store, views=9, optim=Optim(epochs=9, batch=32))
    quick = Experiment("small", (run,), Scale(workers=1))
    logits = train_logits(run)
    folder = store.path(logits)

    def due(kills: int) -> bool:
        return len(list(folder.glob("view-*.arrow"))) >= 1 + 2 * kills

    killer = Killer("Worker", due, times=2)
    execute(quick, store, QUIET, students=False)
    assert open_cache(store, logits, range(9), CPU).manifest.views() == list(range(9))
    expected = {path.name for path in folder.glob("view-*.arrow")}
    assert len(expected) == 9  # none was written twice under another checksum
    killer.times = 0


def test_a_build_whose_driver_went_away_goes_on_with_the_missing_shards(cluster, store):
    run = student_run(store, views=4, optim=Optim(epochs=4, batch=32))
    quick = Experiment("small", (run,), Scale(workers=1))
    execute(quick, store, QUIET, students=False)
    folder = store.path(train_logits(run))
    (folder / "manifest.json").unlink()
    shards = sorted(folder.glob("view-*.arrow"))
    shards[2].unlink()
    before = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    assert len(CacheBuild(store, train_logits(run), range(4)).missing) == 1
    execute(quick, store, QUIET, students=False)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert shards[2].exists()


def test_a_packed_student_whose_worker_is_killed_ends_with_equal_weights(cluster, store, tmp_path):
    run = student_run(store, "skd", views=3, optim=Optim(epochs=60, batch=32))
    prepare(store, run)
    scale = Scale(workers=1, checkpoint_seconds=0)
    folder = store.path(run)

    def due(kills: int) -> bool:
        return len(read_metrics(folder)) >= 10 + 20 * kills

    killer = Killer("Worker", due, times=2)
    execute(Experiment("small", (run,), scale), store, QUIET)
    killer.times = 0
    assert killer.killed
    result = weights(store, run)
    here = Store(tmp_path / "here")
    digits(here, limit=96)
    prepare(here, run)
    assert trained(here, run) == result
    assert [line["epoch"] for line in read_metrics(folder)] == list(range(60))


def tracked_with_a_kill(store: Store, *trackers: str) -> tuple[StudentRun, list[tuple[int, float]]]:
    """A student of two workers, one of which was killed after 5 of 20 epochs; (epoch, loss) each.

    Its numbers went to some trackers.
    """
    run = student_run(store, optim=Optim(epochs=20, batch=32))
    prepare(store, run)
    scale = Scale(workers=2, checkpoint_seconds=0, track=trackers)

    def due(kills: int) -> bool:
        return len(read_metrics(store.path(run))) >= 5

    killer = Killer("RayTrainWorker", due)
    execute(Experiment("small", (run,), scale), store, QUIET)
    killer.times = 0
    assert killer.killed
    return run, [(line["epoch"], line["loss"]) for line in read_metrics(store.path(run))]


def pool(store: Store, scale: Scale) -> Pool:
    store.ensure_root()
    return Pool(lambda: artefact_maker(store.url, scale, ""), scale)


def test_a_unit_that_raises_is_an_event_and_the_others_are_done(cluster, store):
    good = student_run(store)
    prepare(store, good)
    units = [
        Unit("shard", (None, None), "a unit that raises"),
        Unit("train", (good,), "a student"),
    ]
    with pool(store, Scale(workers=1, max_failures=1)) as workers:
        events = {event.unit.label: event for event in workers.run(units)}
    assert store.has(good)
    assert events["a student"].state == "done"
    assert isinstance(events["a unit that raises"].error, WorkFailed)
    assert "a unit that raises: " in str(events["a unit that raises"].error)


def test_trainings_that_fail_alike_keep_the_status_of_their_errors(cluster, store):
    missing = f"sha256:{'0' * 64}.pt"
    teachers = [teacher_run(store, weights=missing, seed=seed) for seed in (1, 2)]
    units = [Unit("train", (run,), f"teacher {run.seed}") for run in teachers]
    with pool(store, Scale(workers=1)) as workers:
        errors = [event.error for event in workers.run(units) if event.state == "failed"]
    assert [type(error) for error in errors] == [CacheCorrupt, CacheCorrupt]


class Meeting:
    """Target of two workers: a unit that ends at once, and one that waits for the other's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self) -> int:
        return os.getpid()

    def meet(self) -> int:
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < 2:
            time.sleep(0.05)
        return os.getpid()


def test_a_second_worker_is_started_for_long_units_alone(cluster, tmp_path):
    def values(method: str, count: int, *, patient: bool = True) -> set[int]:
        units = [Unit(method, (), f"unit {number}") for number in range(count)]
        events = workers.run(units, patient=patient)
        return {event.value for event in events if event.state == "done"}

    with Pool(lambda: Meeting(tmp_path), Scale(workers=1), limit=2) as workers:
        first = values("step", 1, patient=False)
        assert values("step", 20) == first
        assert len(values("meet", 2)) == 2


def test_more_workers_than_the_cluster_has_are_refused_at_once(cluster, store):
    run = student_run(store)
    with pytest.raises(NoRoom, match=r"wants 64 workers .* the cluster has 2 CPUs"):
        fit(store, teacher_run(store, optim=Optim(epochs=1, batch=64)), 64, Scale())
    assert not store.has(run)


def test_whatever_is_killed_of_a_training_changes_no_bit_of_the_weights(cluster, tmp_path):
    stores = [Store(tmp_path / name) for name in ("whole", "cut")]
    runs = []
    for store in stores:
        # A policy, a memory and their own group of the optimiser: the most that is kept.
        method = SAKD(base=CRD(negatives=64), homogeneous=False)
        run = student_run(store, method, views=3, optim=Optim(epochs=50, batch=32))
        prepare(store, run)
        runs.append(run)
    run = runs[0]
    assert run == runs[1]
    scale = Scale(workers=2, checkpoint_seconds=0, max_failures=10)
    fit(stores[0], run, 2, scale)
    folder = stores[1].path(run)

    def epochs(count: int):
        return lambda kills: len(read_metrics(folder)) >= count

    def in_turn() -> None:
        # As its group is set up; as it is handed the training; in the training, which writes a
        # checkpoint with every epoch; and the controller of them all.
        worker = "ray::RayTrainWorker"
        states = (f"{worker}.init_train_context", 0), (f"{worker}.run_train_fn", 0), (worker, 8)
        for title, count in (*states, ("ray::TrainController", 20)):
            one = Killer(title, epochs(count))
            one.join()
            killed.extend(one.killed)

    killed: list[int] = []
    killer = threading.Thread(target=in_turn, daemon=True)
    killer.start()
    fit(stores[1], run, 2, scale)
    killer.join(timeout=60)
    assert len(killed) == 4, "the run ended before its processes could be killed"
    assert weights(stores[1], run) == weights(stores[0], run)
    assert [line["epoch"] for line in read_metrics(folder)] == list(range(50))


def test_the_plan_sends_wide_students_to_ray_train_and_the_others_to_the_pool(cluster, store):
    runs = tuple(student_run(store, "kd", seed=seed) for seed in (0, 1))
    wide = Rule(match={"run.seed": 1}, workers=2)
    scale = Scale(workers=1, teacher_workers=1, rules=(wide,), shard="fsdp", accumulate=2)
    execute(Experiment("small", runs, scale), store, QUIET)
    from raykd.storage.store import read_json

    results = [read_json(store.path(run) / "result.json") for run in runs]
    assert [result["workers"] for result in results] == [1, 2]
    assert [result["shard"] for result in results] == [None, "fsdp"]
    assert [result["accumulate"] for result in results] == [2, 2]
