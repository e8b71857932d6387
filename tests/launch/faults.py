"""Faults on purpose: a Ray cluster of several nodes on this machine, a driver, and their losses.

A driver is `raykd run`, `precompute` or `sweep` in a process of its own. Whatever is killed, the
driver is started again until it is done, as a job that is submitted again. What it made must then
be what an undisturbed driver makes, bit for bit, each thing once.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # of those whose head has gone
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
# A lost node is noticed within seconds.
_CONFIG = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_SCALE = "max_failures: 1000, checkpoint_seconds: 0"
_OWN = {  # lines that a command's experiment has of its own
    "precompute": ["scale: {workers: 1, max_failures: 1000}"],
    "run": [f"scale: {{workers: 2, teacher_workers: 1, {_SCALE}}}"],
    "sweep": ["grid: {run.seed: [0, 1, 2, 3]}", f"scale: {{workers: 1, {_SCALE}}}"],
}
EPOCHS = {"precompute": 250, "run": 600, "sweep": 100}  # for about half a minute
# Seconds between two faults, so that some find a group of workers on its way up, and some at work.
_EVERY = {"precompute": (2.0, 5.0), "run": (3.0, 12.0), "sweep": (2.0, 10.0)}
_PATIENCE = 600.0  # seconds that a driver may take after the last fault
_STARTS = 3  # of a cluster, until it is up
_MEMORY = 100 << 20  # bytes of a node's object store


def experiment(views: int, epochs: int, *more: str, method: str = "skd") -> str:
    """The file of a small experiment; `more` are its lines beside `run`."""
    run = f"""
run:
  model: resnet8
  data: {{name: digits, holdout: 0.1, limit: 96, augment: {{pad: 1}}}}
  teacher:
    model: resnet8
    data: {{name: digits, holdout: 0.1, limit: 320, augment: {{pad: 1}}}}
    optim: {{epochs: 2, batch: 32}}
  method: {method}
  views: {views}
  optim: {{epochs: {epochs}, batch: 32}}"""
    return "\n".join([run, *more, ""])


def work(command: str, epochs: int | None = None, method: str = "skd") -> str:
    """The file of an experiment for `raykd precompute`, `run` or `sweep`, of `EPOCHS` or others."""
    epochs = epochs or EPOCHS[command]
    views = epochs if command == "precompute" else 2
    return experiment(views, epochs, *_OWN[command], method=method)


def _head() -> dict[str, Any]:
    """Command that starts a head: without processors, with a dashboard on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {"object_store_memory": _MEMORY, "_system_config": _CONFIG}
    return {"num_cpus": 0, "dashboard_port": port, **kept}


class Site:
    """A cluster and the driver that works on it."""

    def __init__(self, place: Path, nodes: int = 3, say: Callable[[str], None] = print) -> None:
        """`place` is a folder for logs; `nodes` have a processor each, the head none."""
        os.environ.update(ENVIRONMENT)
        self._place = place
        self._count = nodes
        self._say = say
        self._logs = 0
        self._cluster = self._started()
        self._driver: subprocess.Popen[bytes] | None = None
        self._words: list[str] = []
        self._disturbed = False

    def _started(self) -> Cluster:
        for left in reversed(range(_STARTS)):
            cluster = Cluster()
            try:
                cluster.add_node(**_head())
                for _ in range(self._count):
                    cluster.add_node(num_cpus=1, object_store_memory=_MEMORY)
                return cluster
            except Exception:  # Ray gives a node half a minute, which a busy machine may need
                cluster.shutdown()
                if not left:
                    raise
        raise AssertionError

    def close(self) -> None:
        """End the driver and the cluster."""
        if self._driver is not None:
            self._driver.kill()
            self._driver.wait()
        self._cluster.shutdown()

    def begin(self, words: Sequence[str]) -> None:
        """Start a driver: the words of a `raykd` command."""
        self._words = [*words]
        self._begin()

    def _begin(self) -> None:
        self._logs += 1
        self._disturbed = False
        command = [sys.executable, "-c", "from raykd.cli import main; main()", *self._words]
        address = f"scale.address={self._cluster.address}"
        with self._log().open("wb") as log:
            self._driver = subprocess.Popen(
                [*command, address], stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    def _log(self) -> Path:
        return self._place / f"driver-{self._logs}.log"

    def done(self) -> bool:
        """True once the driver is done; one that was lost, or gave up for a fault, starts again."""
        assert self._driver is not None
        code = self._driver.poll()
        if code is None:
            return False
        if code == 0:
            return True
        text = self._log().read_text(errors="replace")
        if not self._disturbed:
            raise RuntimeError(f"a driver that nothing befell ended with {code}:\n{text[-3000:]}")
        self._begin()
        return False

    def inject(self, kind: str, store: Path, rng: random.Random) -> bool:
        """Have a fault happen now; False where there is nothing that it could happen to."""
        self._disturbed = True
        return getattr(self, f"_lose_{kind}")(store, rng)

    def _lose_worker(self, store: Path, rng: random.Random) -> bool:
        """A process that trains, computes shards, or carries out a trial."""
        titles = ("ray::Worker", "ray::RayTrainWorker", "ray::ImplicitFunc", "ray::run_trial")
        ours = {_raylet(node) for node in self._cluster.worker_nodes}
        named = [pid for pid, title in _processes() if title.startswith(titles)]
        found = [pid for pid in named if _parent(pid) in ours]
        return bool(found) and _killed(rng.choice(found))

    def _lose_node(self, store: Path, rng: random.Random) -> bool:
        """A node with all that runs on it; another one comes."""
        self.take(rng.choice([*self._cluster.worker_nodes]))
        return True

    def _lose_writer(self, store: Path, rng: random.Random) -> bool:
        """The node of the process that writes a checkpoint."""
        node = self.writer(store)
        if node is not None:
            self.take(node)
        return node is not None

    def writer(self, store: Path) -> Any:
        """The node of a process that writes a training, if there is one."""
        parents = {_raylet(node): node for node in self._cluster.worker_nodes}
        for lock in store.glob("locks/*.writer"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(lock.read_text().split()[1])
                if _parent(pid) in parents:
                    return parents[_parent(pid)]
        return None

    def warn(self, node: Any, seconds: int) -> None:
        """Say that a node will be taken away, as a cloud does of a spot node."""
        words = ["drain-node", "--address", self._cluster.address, "--node-id", node.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([str(Path(sys.executable).with_name("ray")), *words], check=True)

    def take(self, node: Any) -> None:
        """Take a node away; another one comes."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.grow()

    def shrink(self) -> None:
        """Take a node away."""
        self._cluster.remove_node([*self._cluster.worker_nodes][-1], allow_graceful=False)

    def grow(self) -> None:
        """Add a node, as an autoscaler does."""
        self._cluster.add_node(num_cpus=1, object_store_memory=_MEMORY)

    def workers(self, title: str) -> set[int]:
        """The nodes, by their raylets, that have a worker of a title at the moment."""
        ours = {_raylet(node) for node in self._cluster.worker_nodes}
        return {_parent(pid) for pid, name in _processes() if name.startswith(title)} & ours

    def text(self) -> str:
        """Output of the driver so far."""
        return self._log().read_text(errors="replace")

    def _lose_driver(self, store: Path, rng: random.Random) -> bool:
        """The driver's process."""
        assert self._driver is not None
        if self._driver.poll() is not None:
            return False
        self._driver.kill()
        self._driver.wait()
        return True

    def _lose_head(self, store: Path, rng: random.Random) -> bool:
        """The head, and so the cluster; a new one comes, and the job is submitted again."""
        assert self._driver is not None
        self._cluster.shutdown()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._driver.wait(timeout=30)
        self._driver.kill()  # on a cluster it runs beside the head
        self._driver.wait()
        self._cluster = self._started()
        return True


KINDS = ("worker", "node", "writer", "driver", "head")


class Watch:
    """Which epochs of a store's trainings were done twice, as far as their metrics tell."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._seen: Counter[Path] = Counter()
        self.repeated = 0  # at most, at a time

    def look(self) -> None:
        """Look at every training."""
        for path in self._store.glob("*/*/metrics.jsonl"):
            with contextlib.suppress(OSError):
                lines = path.read_bytes().count(b"\n")
                self.repeated = max(self.repeated, self._seen[path] - lines)
                self._seen[path] = lines


def disturbed(
    site: Site,
    words: Sequence[str],
    store: Path,
    faults: Sequence[str],
    rng: random.Random,
) -> tuple[Counter[str], int]:
    """Carry out a command while faults happen, until it is done.

    How many of each kind there were, and how many epochs were repeated at most at a time. Faults
    that are left when it is done do not happen.
    """
    happened: Counter[str] = Counter()
    watch, waiting, every = Watch(store), [*faults], _EVERY[words[0]]
    site.begin([*words, "--store", str(store)])
    due, until = time.monotonic() + rng.uniform(*every), time.monotonic() + _PATIENCE
    while not site.done():
        watch.look()
        time.sleep(0.1)
        now = time.monotonic()
        if waiting and now > due:
            if site.inject(waiting[0], store, rng):
                happened[waiting.pop(0)] += 1
                due, until = time.monotonic() + rng.uniform(*every), time.monotonic() + _PATIENCE
            else:
                due = now + 0.2
        if now > until:
            raise RuntimeError(f"{words}: nothing more happens after {dict(happened)}")
    watch.look()
    return happened, watch.repeated


def differences(store: Path, reference: Path) -> list[str]:
    """Differences of a store from an undisturbed one; a line each."""
    found, expected = dict(_contents(store)), dict(_contents(reference))
    lines = [f"lost: {name}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"twice, or of nobody: {name}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"not the same: {name}" for name in both if found[name] != expected[name]]


def leftovers(store: Path) -> list[Path]:
    """Temporary files, and checkpoints of what is done.

    The lock's file of a driver that was killed may stay: it locks nothing.
    """
    names = ("**/.*.tmp", "**/.*.new", "*/*/checkpoint.pt")
    return [path for name in names for path in store.glob(name)]


def _contents(store: Path) -> Iterator[tuple[str, str]]:
    """Every finished thing of a store, with a digest of what it says."""
    for path in sorted(store.glob("*/*/*")):
        kind, name = path.parent.parent.name, str(path.relative_to(store))
        if kind not in ("teachers", "caches", "preludes", "students") or not path.is_file():
            continue
        if path.suffix == ".arrow":
            continue  # by view: into how many shards one was cut depends on the nodes there were
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            told = [(line["epoch"], line["loss"], line.get("top1")) for line in lines]
            yield name, json.dumps(told)
        elif path.name == "result.json":
            yield name, str(json.loads(path.read_text())["weights"])
        elif path.name != "manifest.json":  # in the order in which the shards came
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
    for folder in store.glob("caches/*"):
        views: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("view-*.arrow")):
            views.setdefault(path.name[: len("view-000000")], []).append(path)
        for view, paths in views.items():
            rows = pa.concat_tables(pa.ipc.open_file(path).read_all() for path in paths)
            told = hashlib.sha256()
            for column in rows.columns:
                told.update(str(column.to_pylist()).encode())
            yield f"caches/{folder.name}/{view}, {len(rows)} rows", told.hexdigest()
    for folder in store.glob("sweeps/*"):
        sheets = [json.loads(path.read_text()) for path in folder.glob("trials/*.json")]
        told = sorted(json.dumps([s.get("config"), s.get("state")]) for s in sheets)
        yield f"sweeps/{folder.name}", json.dumps(told)


def _processes() -> Iterator[tuple[int, str]]:
    """The processes of this machine, with their titles."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_text(errors="replace")


def _killed(pid: int) -> bool:
    """True where a process was there to be killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _parent(pid: int) -> int:
    """The parent of a process; 0 where it has gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return int(text.rpartition(")")[2].split()[1])
    return 0


def _raylet(node: Any) -> int:
    """The process that a node's workers are children of."""
    [info] = node.all_processes["raylet"]
    return info.process.pid
