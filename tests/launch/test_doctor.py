"""`raykd doctor`: each check by itself, this machine, a cluster whose nodes differ."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.launch import cluster as joining
from raykd.launch import doctor, doctor_node
from raykd.planning.remaining import missing_bytes
from raykd.storage.store import Store
from tests.launch.ray_marks import RAY

VERSIONS = {"python": "3.11.7", "raykd": "0.1.0", "torch": "2.15.0", "ray": "2.60.0", "numpy": "2"}
GOOD: dict[str, Any] = {
    "versions": VERSIONS,
    "open_files": 65536,
    "shm_bytes": 8 << 30,
    "temp_free": 100 << 30,
    "auth_mode": "token",
    "token": True,
    "gpus": 0,
}


def nodes(**changes) -> dict[str, Any]:
    """A driver and two nodes, of which the second differs."""
    return {"driver": GOOD, "a": GOOD, "b": GOOD | changes}


def test_equal_versions_are_ok_and_another_one_fails_and_names_the_node():
    same = doctor.versions(nodes())
    assert same.status == "ok" and "torch 2.15.0" in same.message
    other = doctor.versions(nodes(versions=VERSIONS | {"torch": "9"}))
    assert (other.status, other.message) == ("failed", "b has torch 9, driver 2.15.0")
    assert doctor.versions(nodes(versions=VERSIONS | {"numpy": "1"})).status == "warning"


def test_a_clock_that_is_off_is_named():
    assert doctor.clocks({"a": 0.1, "b": -2.9}).status == "ok"
    found = doctor.clocks({"a": 0.0, "b": -4.0})
    assert (found.status, found.message) == ("failed", "b is off by -4.0 s")


def test_rooms():
    gb = 10**9
    assert doctor.room("/x", 100 * gb, 50 * gb).status == "ok"
    assert doctor.room("/x", 100 * gb, 95 * gb).status == "warning"
    assert doctor.room("/x", 100 * gb, 101 * gb).status == "failed"
    assert doctor.room("/x", gb // 2).status == "failed"


def test_small_limits_are_warnings_that_name_the_node():
    for good in ({}, {"shm_bytes": None}, {"open_files": -1}):  # -1: no limit
        assert {found.status for found in doctor.limits(nodes(**good))} == {"ok"}
    for key, check in (("shm_bytes", "/dev/shm"), ("open_files", "open files")):
        [low] = [f for f in doctor.limits(nodes(**{key: 1024})) if f.status == "warning"]
        assert low.check == check and low.message.startswith("b ") and low.advice


def test_authentication_is_the_same_everywhere_or_fails():
    assert doctor.auth(nodes()).status == "ok"
    half = doctor.auth(nodes(auth_mode=""))
    assert half.status == "failed" and "b unset" in half.message
    lacking = doctor.auth(nodes(token=False))
    assert (lacking.status, lacking.message) == ("failed", "no token on b")


def test_authentication_that_is_off_is_a_warning_on_several_machines():
    for mode in ("", "disabled"):
        off = {name: GOOD | {"auth_mode": mode, "token": False} for name in ("driver", "a")}
        assert doctor.auth(off).status == "warning"
        alone = doctor.auth({"driver": off["driver"]})
        assert alone.status == "ok"
        trusted = "whoever has an account" if mode else "that its user alone can read"
        assert trusted in alone.message
    left = {
        "driver": GOOD | {"auth_mode": ""}
    }  # `ray start` would ask for the token that lies here
    assert doctor.auth(left).status == "warning"


def test_gpus_that_torch_does_not_see_fail_and_others_are_a_warning():
    def found(seen: dict[str, int], offered: dict[str, float]) -> doctor.Finding:
        return doctor.gpus({name: {"gpus": count} for name, count in seen.items()}, offered)

    assert found({"a": 0}, {"a": 0.0}).status == found({"a": 4}, {"a": 4.0}).status == "ok"
    unseen = found({"a": 4, "b": 0}, {"a": 4.0, "b": 4.0, "silent": 1.0})
    assert unseen.status == "failed" and "build on b" in unseen.advice
    assert found({"a": 4}, {"a": 2.0}).status == "warning"


def test_more_workers_than_fit_fail():
    assert doctor.fits(4, 4, "1 CPU").status == "ok"
    assert doctor.fits(5, 4, "1 CPU").status == "failed"
    assert doctor.fits(1, 4, "1 CPU", parallel=5).status == "warning"
    assert doctor.fits(5, 4, "1 CPU", grows=True).status == "warning"


def marks(places: dict[str, Path]) -> dict[str, Any]:
    """Files that machines see in a store whose path differs between them."""
    wrong = {
        name: doctor_node.write_mark(str(place), f"m/{name}", name)
        for name, place in places.items()
    }
    return {
        name: wrong[name] or doctor_node.read_marks(str(place), "m")
        for name, place in places.items()
    }


def test_a_store_that_all_machines_see_is_ok_and_others_are_named(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "m").mkdir(parents=True)
    one, other = tmp_path / "one", tmp_path / "other"
    places = {"driver": one, "a": one, "b": other, "c": tmp_path / "none"}
    found = doctor.shared("/s", marks(places))
    assert found.status == "failed"
    assert "b sees another folder there than driver" in found.message
    assert "a does not see what b, c wrote" in found.message
    assert "c: FileNotFoundError: No such file" in found.message
    (tmp_path / "all" / "m").mkdir(parents=True)
    found = doctor.shared("/s", marks(dict.fromkeys(["driver", "a", "b"], tmp_path / "all")))
    assert (found.status, found.message) == ("ok", "/s: written and read with 2 nodes")


def test_a_machine_says_what_it_has(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    facts = doctor_node.facts()
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["versions"]["torch"][0].isdigit()
    assert (facts["auth_mode"], facts["token"]) == ("token", True)
    assert facts["open_files"] > 0 and facts["temp_free"] > 0 and facts["gpus"] is not None


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No cluster anywhere."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_without_a_cluster_this_machine_is_checked(tmp_path, alone):
    store = tmp_path / "new" / "store"
    done = CliRunner().invoke(main, ["doctor", "--store", str(store), "--json"])
    assert done.exit_code == 0, done.output
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert "this machine alone is looked at" in found["cluster"]["message"]
    assert found["shared store"]["status"] == found["versions"]["status"] == "ok"
    assert not store.parent.exists()  # nothing is left behind


def test_a_store_that_cannot_be_written_fails(tmp_path, alone):
    (tmp_path / "file").touch()
    words = ["doctor", "--store", str(tmp_path / "file" / "store")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 9, done.output
    assert f"{tmp_path / 'file' / 'store'}: cannot be written (Not a directory)" in done.output


def test_a_store_by_url_is_written_and_read(tmp_path, alone, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "local"))
    (tmp_path / "far").mkdir()
    done = CliRunner().invoke(main, ["doctor", "--store", f"file://{tmp_path}/far"])
    assert done.exit_code == 0, done.output
    assert f"ok       shared store: file://{tmp_path}/far: written and read" in done.output
    assert not [path for path in (tmp_path / "far").rglob("*") if path.is_file()]


def test_a_dead_cluster_that_is_noted_is_found(tmp_path, alone):
    joining.address_file().parent.mkdir()
    joining.address_file().write_text("127.0.0.1:1")
    found = doctor.stale()
    assert found.status == "warning" and "rm " in found.advice
    joining.address_file().unlink()
    assert doctor.stale().status == "ok"


@pytest.mark.slow
def test_caches_that_are_to_be_made_count(tmp_path, alone):
    text = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  method: kd
  views: 2
  optim: {epochs: 2, batch: 32}
"""
    store = Store(tmp_path / "store")
    needed = missing_bytes(resolve(parse(text, "x"), store), store)
    # 96 rows in two views and 180 of the test images, each 10 float16 and a float32.
    assert needed == (2 * 96 + 180) * (10 * 2 + 4)


SCRIPT = """
import json, os, socket, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

store, logs = sys.argv[1:]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
head = {"num_cpus": 1, "object_store_memory": 100 << 20}
head |= {"include_dashboard": True, "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head)
raykd = [sys.executable, "-c", "from raykd.cli import main; main()"]

def doctor(*words):
    command = [*raykd, "doctor", *words, "--store", store, "--address", cluster.address, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)

cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
cluster.wait_for_nodes()
doctor()
# A node that has a disk of its own where the others have the store.
start = Path(sys.executable).with_name("ray")
command = f"mount -t tmpfs none {store} && exec {start} start --address={cluster.address} "
command += "--num-cpus=1 --object-store-memory=100000000 --block"
with open(logs, "w") as log:
    third = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=log, stderr=log)
ray.init(address=cluster.address, log_to_driver=False)
until = time.time() + 60
while sum(node["Alive"] for node in ray.nodes()) < 3 and time.time() < until:
    time.sleep(0.5)
ray.shutdown()
doctor(*json.loads(os.environ["WORDS"]))
third.terminate()
third.wait()
cluster.shutdown()
"""
WIDE = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 2, batch: 36}
scale: {workers: 9}
"""


def can_mount() -> bool:
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def ray(test):
    for mark in [*RAY, pytest.mark.cluster, pytest.mark.timeout(400)]:
        test = mark(test)
    return test


@ray
@pytest.mark.skipif(not can_mount(), reason="a node with a disk of its own needs mount rights")
def test_a_cluster_is_checked_and_a_node_with_a_store_of_its_own_is_found(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "wide.yaml").write_text(WIDE)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"WORDS": json.dumps([str(tmp_path / "wide.yaml")])}
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-c", SCRIPT, str(store), str(tmp_path / "log")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    (good, output, errors), (bad, wide, wide_errors) = lines
    assert good == 0, output + errors
    found = {each["check"]: each for each in json.loads(output)["findings"]}
    assert found["cluster"]["message"].startswith("2 nodes: ")
    assert found["shared store"]["message"].endswith("written and read with 2 nodes")
    for check in ("versions", "clocks", "fit", "dashboard", "GPUs"):
        assert found[check]["status"] == "ok", found[check]
    assert found["authentication"]["status"] == "warning"  # off, on several machines

    assert bad == 6, wide + wide_errors
    found = {each["check"]: each for each in json.loads(wide)["findings"]}
    assert found["cluster"]["message"].startswith("3 nodes: ")
    assert found["shared store"]["status"] == "failed"
    assert found["shared store"]["message"].count("FileNotFoundError") == 1
    assert found["fit"]["status"] == "failed" and "at most 9 train" in found["fit"]["message"]
    assert sorted(path.name for path in store.iterdir()) == ["images"]
