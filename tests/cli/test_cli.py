"""The command line, as a script or a person calls it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load
from raykd.config.schema import schema
from raykd.planning import estimate, rehearsal
from raykd.storage.store import Store
from tests.each import each

RAYKD = Path(sys.executable).with_name("raykd")
EXPERIMENT = """
run:
  model: resnet8  # no comment is lost
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet14, optim: {epochs: 2, batch: 32}}
  optim: {epochs: EPOCHS, batch: 32}
grid:
  run.method: [label_only, kd]
scale: {checkpoint_seconds: 0}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An experiment file; the tests leave it as it is."""
    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    path.write_text(EXPERIMENT.replace("EPOCHS", "2"))
    return path


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """A store after `precompute` and `run`, and the number of artefacts that each of them made."""
    store = tmp_path_factory.mktemp("finished")
    precomputed = json.loads(call("precompute", file, "--store", store, "--json").stdout)
    trained = json.loads(call("run", file, "--store", store, "--json").stdout)
    return store, precomputed["made"], trained["work"]["made"]


def test_precompute_then_run_trains_only_the_students(finished):
    _, precomputed, trained = finished
    assert precomputed == {"teachers": 1, "caches": 2, "preludes": 0, "students": 0}
    assert trained == {"teachers": 0, "caches": 0, "preludes": 0, "students": 2}


def test_a_run_ends_with_a_table_and_a_page_and_reuses_everything_there_is(file, finished):
    store, *_ = finished
    again = call("run", file, "--store", store)
    assert "label_only" in again.stdout
    assert "kd" in again.stdout
    assert (store / "reports" / "small.html").is_file()
    assert "1 teacher, 2 caches, 2 students" in again.output.partition("reused")[2]


def test_a_plan_says_what_would_be_done_and_does_nothing(file, tmp_path):
    plan = json.loads(call("plan", file, "--store", tmp_path / "store", "--json").stdout)
    assert {item["kind"] for item in plan["items"]} == {"teacher", "cache", "students"}
    assert plan["forwards"] == 180 + 2 * 96  # the test images, and two views of the others
    assert plan["bytes"] == plan["forwards"] * 24
    assert plan["seconds"] > 0
    assert list(Store(tmp_path / "store").finished("teachers")) == []
    assert "teacher forwards" in call("plan", file, "--store", tmp_path / "store").stdout


def test_a_rehearsal_is_printed_and_written_into_the_file(file, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "_MEASURE_SECONDS", 0.0)
    mine = Path(shutil.copy(file, tmp_path))
    words = ("plan", mine, "--store", tmp_path / "store")
    rehearsed = json.loads(call(*words, "--rehearse", "--json").stdout)["rehearsal"]
    assert {way["kind"] for way in rehearsed["ways"]} == {"student", "teacher", "cache"}
    assert {one["views"] for one in rehearsed["schedules"]} >= {"all", "a quarter", "live"}
    assert mine.read_text() == file.read_text()

    monkeypatch.setattr(rehearsal, "fastest", lambda costs, current: max(costs))
    applied = call(*words, "--apply", "--batch")
    assert "run.precision: float32" not in applied.output
    written = load(mine)
    assert {run.optim.batch for run in written.students()} == {128}
    assert written.scale.teacher_batch == 512
    assert "# no comment is lost" in mine.read_text()
    assert "leave --cluster out" in call(*words, "--rehearse", "--cluster", mine, code=2).output
    assert "expected --apply" in call(*words, "--batch", code=2).output


def test_verify_passes_a_whole_cache_and_names_a_damaged_shard(file, finished, tmp_path):
    store = shutil.copytree(finished[0], tmp_path / "store")
    caches = json.loads(call("verify", "--store", store, "--json").stdout)["caches"]
    assert len(caches) == 2
    assert all(cache["difference"] < 0.05 and cache["agreement"] == 1.0 for cache in caches)
    shard = next(store.glob("caches/*/view-000001-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    broken = call("verify", file, "--store", store, code=5)
    assert shard.name in broken.output


@pytest.mark.slow
def test_a_store_may_be_a_url(file, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "one"))
    call("precompute", file, "--store", bucket)
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "two"))
    monkeypatch.setenv("RAYKD_STORE", bucket)
    assert len(json.loads(call("show", "caches", "--json").stdout)) == 2
    shown = bucket.partition("?")[0]
    assert f"no students in {shown}\n" in call("show", "students").stdout
    assert json.loads(call("plan", file, "--json").stdout)["bytes"] == 0
    call("verify", file)
    call("report", file)


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_a_sentence(file, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path))
    missing = bucket.replace("s3://b", "s3://no-")
    for words in (("run", file), ("show", "students")):
        result = call(*words, "--store", missing, code=9)
        assert "there is no bucket 'no-" in result.stderr
        assert "Traceback" not in result.output
    assert "not a place" in call("show", "students", "--store", "nosuch://a/b", code=2).stderr


def test_a_store_that_cannot_be_made_or_is_not_there_is_a_sentence(file, tmp_path):
    (tmp_path / "taken").write_text("")
    result = call("run", file, "--store", tmp_path / "taken" / "store", code=9)
    assert "cannot be written (Not a directory)" in result.stderr
    assert "there is no store at" in call("verify", "--store", tmp_path / "none", code=2).stderr


def test_show_lists_what_there_is(finished, tmp_path):
    store, *_ = finished
    assert "no students" in call("show", "students", "--store", tmp_path).stdout
    for what, count in {"teachers": 1, "caches": 2, "students": 2}.items():
        rows = json.loads(call("show", what, "--store", store, "--json").stdout)
        assert len(rows) == count
        assert all(len(row["fingerprint"]) == 20 for row in rows)
        assert rows[0]["fingerprint"] in call("show", what, "--store", store).stdout
    for what, name in {"methods": "spherical_kd", "datasets": "cifar10"}.items():
        assert name in call("show", what).stdout


def test_a_report_of_an_unfinished_experiment_says_so(file, finished, tmp_path):
    words = ("report", file, "run.seed=1", "--store", finished[0])
    call(*words, "--output", tmp_path / "page.html")
    assert "not started" in (tmp_path / "page.html").read_text()
    assert "| kd" in call(*words, "--markdown").stdout


@each(
    ("override", "code", "message"),
    [
        ("run.model=resnet21", 2, "no network is called 'resnet21'; did you mean"),
        ("data.path=/nowhere", 3, "/nowhere: there is no such file or folder (data.path)"),
        ("run.data.limit=100000", 2, "run.data.limit: 100000 is more than the 1617"),
        ("run.optim.batch=500", 2, "fewer than one batch of 500"),
    ],
)
def test_what_is_wrong_has_a_sentence_and_an_exit_status(file, tmp_path, override, code, message):
    result = call("run", file, override, "--store", tmp_path, code=code)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    result = call("run", tmp_path / "none.yaml", code=2)
    assert "none.yaml: cannot be read (No such file or directory)" in result.stderr


def test_the_schema_is_written_to_a_file(tmp_path):
    call("schema", "--output", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(json.dumps(schema()))


def weights(store):
    return {path.parent.name: path.read_bytes() for path in store.glob("students/*/weights.*")}


@pytest.mark.slow
def test_a_run_that_is_killed_wherever_it_is_goes_on_to_equal_weights(tmp_path):
    path, store = tmp_path / "small.yaml", tmp_path / "killed"
    path.write_text(EXPERIMENT.replace("EPOCHS", "60"))
    call("run", path, "--store", tmp_path / "undisturbed")

    def size(pattern: str) -> int:
        return sum(file.stat().st_size for file in store.glob(pattern))

    # Within the teacher, among the shards, within a student: when their files grow.
    moments = {
        "teachers/*/metrics.jsonl": signal.SIGKILL,
        "caches/*/view-*.arrow": signal.SIGKILL,
        "students/*/metrics.jsonl": signal.SIGINT,
    }
    # SIGINT is handled as in a terminal: jobs in a shell's background would ignore it.
    heard = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = [sys.executable, "-c", heard, str(RAYKD), "run", str(path), "--store", str(store)]
    for pattern, kind in moments.items():
        before = size(pattern)
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and size(pattern) <= before:
            time.sleep(0.01)
        process.send_signal(kind)
        _, errors = process.communicate()
        assert process.returncode == (130 if kind == signal.SIGINT else -kind), errors
        assert kind == signal.SIGKILL or "the same command goes on" in errors
    call("run", path, "--store", store)
    assert weights(store) == weights(tmp_path / "undisturbed")
    assert len(weights(store)) == 2
