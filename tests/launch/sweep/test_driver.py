"""Sweeps on a real Ray cluster: shared work, failures, early stops, wide trials, lost drivers."""

import csv
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core.errors import RaykdError, WorkFailed
from raykd.launch.executor import execute
from raykd.launch.sweep.driver import SweepResult, raise_failures, sweep
from raykd.planning.plan import plan
from raykd.recipes import StudentRun
from raykd.storage.store import Store, read_json
from raykd.tracking.console import Terminal
from raykd.training.route_results import route_found
from raykd.training.sweep_sheets import Sheet, folder_of, with_drawn_students
from tests.launch.ray_marks import RAY
from tests.planted_files import Planted

pytestmark = [*RAY, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::UserWarning")]
QUIET = Terminal(quiet=True)
BASE = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, validation: 0.2, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 3, batch: 64}, save_every: 1}
  method: kd
  optim: {epochs: 3, batch: 32}
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def experiment(more: str, text: str = BASE) -> Experiment:
    return parse(text + more, "small")


def weights(store: Store, run: StudentRun) -> bytes:
    return (store.path(run) / "weights.safetensors").read_bytes()


def trained_here(tmp_path: Path, runs: tuple) -> Store:
    """A store in which the same students were trained without Ray."""
    here = Store(tmp_path / "here")
    base = resolve(experiment("grid: {run.seed: [0]}"), here).runs[0]  # reads the images
    assert isinstance(base, StudentRun)
    execute(Experiment("here", runs, Scale()), here, QUIET)
    return here


def summaries(folder: Path) -> bytes:
    """The bodies of the records in TensorBoard's files below a folder."""
    found = b""
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found += data[at + 12 : at + 12 + length]
            at += 16 + length
    return found


def test_what_trials_share_is_made_once(tmp_path):
    more = """
grid:
  run.rco:
    - {select: greedy, threshold: 1.0e-4}
    - {select: greedy, threshold: 1.0e-4, stages: one_stage}
    - {anchors: 3}
    - {anchors: 3, stages: one_stage}
  run.method: [kd, skd]
scale: {workers: 1, max_failures: 0}
"""
    file, log, store = tmp_path / "shared.yaml", tmp_path / "log", Store(tmp_path / "store")
    file.write_text(BASE + more)
    log.touch()
    script = Path(__file__).with_name("counted_sweep.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, str(script), str(file), str(store.root), str(log)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["8", "0"]
    lines = Counter(log.read_text().splitlines())
    assert max(lines.values()) == 1, lines.most_common(3)  # no shard and no training came twice

    whole, sheets = with_drawn_students(resolve(parse(file.read_text(), "shared"), store), store)
    students = [route_found(store, run) for run in whole.runs]
    work = plan(run for run in students if run is not None)
    assert len(sheets) == 8 and all(store.has(run) for run in work.students)
    trainings = sum(line.startswith("training") for line in lines)
    assert trainings == len(work.teachers) + len(work.students)
    # Rows that the teacher answered for: those of every (anchor, view) that is read, and the
    # validation images of all three anchors.
    rows = [int(stop) - int(start) for *_, start, stop in map(str.split, lines) if len(_) == 3]
    planned = sum(96 * len(job.views) for job in work.caches if job.run.split == "train")
    tests = sum(180 for job in work.caches if job.run.split == "test")
    assert sum(rows) == planned + tests + 3 * 323


def test_trials_that_fail_alike_keep_the_status_of_their_errors(store):
    def swept(*codes):
        sheets = [Sheet(str(n), {}, "one", "failed", None, "said", code=c) for n, c in codes]
        return SweepResult("small", tuple(sheets), store.root, store.root, 1.0)

    for codes, status in (((6, 6), 6), ((9,), 9), ((6, 9), 7), ((6, None), 7)):
        with pytest.raises(RaykdError, match=f"{len(codes)} of {len(codes)} trials") as failed:
            raise_failures(swept(*enumerate(codes)))
        assert failed.value.code == status


def test_a_failed_trial_does_not_lose_the_others(cluster, store, tmp_path):
    more = """
grid:
  run.optim.lr: [0.05, 1.0e+30]
  run.method: [kd, {name: skd, temperature: 2.0}]
scale: {workers: 1, max_failures: 1}
"""
    swept = sweep(experiment(more), store, QUIET)
    assert (swept.count("finished"), swept.count("failed")) == (2, 2)
    with pytest.raises(WorkFailed, match=r"(?s)2 of 4 trials failed.*lr=1e\+30.*not finite"):
        raise_failures(swept)
    assert {sheet.code for sheet in swept.sheets if sheet.state == "failed"} == {7}
    good = [sheet for sheet in swept.sheets if sheet.state == "finished"]
    runs = tuple(sheet.student for sheet in good)
    here = trained_here(tmp_path, runs)
    for run in runs:
        assert weights(store, run) == weights(here, run)

    table = pa.ipc.open_file(swept.results.with_suffix(".arrow")).read_all()
    rows = list(csv.DictReader(swept.results.read_text().splitlines()))
    assert [row["fingerprint"] for row in rows] == [
        name or "" for name in table["fingerprint"].to_pylist()
    ]
    assert {row["run.method"] for row in rows} == {"kd", "skd(temperature=2.0)"}
    for run, sheet in zip(runs, good, strict=True):
        line = next(row for row in rows if row["trial"] == sheet.trial)
        assert float(line["top1"]) == read_json(store.path(run) / "result.json")["last"]["top1"]

    events = summaries(swept.tensorboard)
    assert b"_hparams_/experiment" in events and b"skd(temperature=2.0)" in events
    assert b"ray/tune/validation_top1" in events and b"ray/tune/top1" in events

    again = sweep(experiment(more), store, QUIET)  # goes on: failed trials are tried once more
    assert (again.name, again.count("finished"), again.count("failed")) == (swept.name, 2, 2)


def test_a_sweep_goes_on_from_its_sheets_and_reads_no_pickle(cluster, store, tmp_path):
    more = "grid: {run.seed: [0, 1]}\nscale: {workers: 1}\n"
    first = sweep(experiment(more), store, QUIET)
    assert first.count("finished") == 2
    lost, kept = (sheet.student for sheet in first.sheets)
    before = (store.path(kept) / "result.json").stat().st_mtime_ns
    store.discard(lost)
    marker = tmp_path / "marker"
    notes = [path for path in first.tensorboard.rglob("*") if path.is_file()]
    assert any(path.name == "tuner.pkl" for path in notes)
    for path in [*notes, first.tensorboard / "searcher-state-9999.pkl"]:
        path.write_bytes(pickle.dumps(Planted(marker)))
    again = sweep(experiment(more), store, QUIET)
    assert again.count("finished") == 2 and store.has(lost)
    assert (store.path(kept) / "result.json").stat().st_mtime_ns == before
    assert not marker.exists()


def test_wide_and_packed_trials_share_two_processors(cluster, store):
    more = """
grid: {run.seed: [0, 1, 2]}
scale: {workers: 2, rules: [{match: {run.seed: 2}, workers: 1}]}
"""
    swept = sweep(experiment(more), store, QUIET)
    assert swept.count("finished") == 3
    workers = [
        read_json(store.path(sheet.student) / "result.json")["workers"] for sheet in swept.sheets
    ]
    assert sorted(workers) == [1, 2, 2]
    lines = (swept.tensorboard / "basic").parent.rglob("result.json")
    assert all(path.read_text().strip() for path in lines)


def test_a_sweep_whose_driver_is_killed_or_stopped_goes_on(tmp_path):
    store, file = Store(tmp_path / "store"), tmp_path / "killed.yaml"
    more = (
        "grid: {run.seed: [0, 1, 2, 3]}\nscale: {workers: 1, parallel: 1, checkpoint_seconds: 0}\n"
    )
    file.write_text(BASE.replace("{epochs: 3, batch: 32}", "{epochs: 40, batch: 32}") + more)
    words = [str(Path(sys.executable).with_name("raykd")), "sweep", str(file)]
    words += ["--store", str(store.root)]
    runs = resolve(parse(file.read_text(), "killed"), store).runs

    def finished() -> list[StudentRun]:
        return [run for run in runs if store.has(run)]

    log = tmp_path / "log"
    for kind, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        with log.open("w") as file:
            driver = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        before = None  # how many were finished when it began
        while before is None or len(finished()) == before:
            assert driver.poll() is None, log.read_text()
            if before is None and "1 at a time" in log.read_text():
                before = len(finished())
            time.sleep(0.1)
        if kind == signal.SIGKILL:
            os.killpg(driver.pid, kind)
        else:
            driver.send_signal(kind)
        assert driver.wait() == status, log.read_text()
    assert "the same command goes on" in log.read_text()
    kept = finished()
    assert 1 < len(kept) < len(runs)
    stamps = [(store.path(run) / "result.json").stat().st_mtime_ns for run in kept]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(store.has(run) for run in runs)
    after = [(store.path(run) / "result.json").stat().st_mtime_ns for run in kept]
    assert after == stamps
    assert "4 trials in" in done.stderr and "4 finished" in done.stderr


def test_asha_stops_what_learns_nothing(cluster, store):
    more = """
grid:
  run.optim.lr: [0.1, 1.0e-8, 1.0e-9]
sweep: {scheduler: asha, grace_epochs: 2, reduction: 2}
scale: {workers: 1, parallel: 1}
"""
    text = BASE.replace("{epochs: 3, batch: 32}", "{epochs: 12, batch: 32}")
    swept = sweep(experiment(more, text), store, QUIET)
    states = {sheet.config["run.optim.lr"]: sheet.state for sheet in swept.sheets}
    assert states[0.1] == "finished"
    assert "stopped" in states.values() and swept.count("failed") == 0
    for sheet in swept.sheets:
        assert store.has(sheet.student) == (sheet.state == "finished")


def test_a_random_search_asks_for_what_it_draws(cluster, store):
    more = """
grid: {run.method: [kd, skd]}
search:
  run.optim.lr: {loguniform: [0.01, 0.1]}
  run.optim.weight_decay: {choice: [0.0, 5.0e-4]}
sweep: {samples: 1, seed: 3}
scale: {workers: 1}
"""
    small = experiment(more)
    swept = sweep(small, store, QUIET)
    assert swept.count("finished") == 2
    rates = {sheet.student.optim.lr for sheet in swept.sheets}
    assert len(rates) == 2 and all(0.01 <= rate <= 0.1 for rate in rates)
    whole, sheets = with_drawn_students(resolve(small, store), store)
    assert set(whole.runs) == {sheet.student for sheet in sheets}
    assert folder_of(store, swept.name).is_dir()


def test_optuna_proposes_trials(cluster, store):
    pytest.importorskip("optuna")
    more = """
grid: {run.method: [kd, skd]}
search: {run.optim.lr: {loguniform: [0.01, 0.1]}}
sweep: {algorithm: optuna, samples: 2}
scale: {workers: 1, parallel: 1}
"""
    swept = sweep(experiment(more), store, QUIET)
    assert swept.count("finished") == 2
    assert {sheet.config["run.method"] for sheet in swept.sheets} <= {"kd", "skd"}


def test_a_population_finds_a_schedule_that_is_a_recipe(cluster, store, tmp_path):
    text = BASE.replace("{epochs: 3, batch: 32}", "{epochs: 3, batch: 32, schedule: constant}")
    more = """
search: {run.optim.lr: {loguniform: [0.0001, 0.2]}}
sweep: {scheduler: pbt, samples: 4, quantile: 0.5}
scale: {workers: 1}
"""
    swept = sweep(experiment(more, text), store, QUIET)
    assert swept.count("finished") == 4
    chains = [sheet.student.stages() for sheet in swept.sheets]
    assert all(len(chain) == 3 for chain in chains)
    assert all(stage.optim.epochs == 1 for chain in chains for stage in chain)
    here = trained_here(tmp_path, tuple(chain[-1] for chain in chains))
    for chain in chains:
        assert weights(store, chain[-1]) == weights(here, chain[-1])
