"""Every query of every dashboard, asked of a real Prometheus while raykd works."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.dashboards import EXPORTED, filled, queries
from tests.launch.ray_marks import RAY

PROMETHEUS = os.environ.get("RAYKD_PROMETHEUS") or shutil.which("prometheus")
pytestmark = [
    *RAY,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on PATH or in RAYKD_PROMETHEUS"),
]

BASE = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, validation: 0.2, limit: 640, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 4, batch: 64}}
  views: 192  # for long enough that workers report it, every two seconds
  optim: {epochs: 192, batch: 32}
"""
RUN = (
    BASE
    + """
grid: {run.method: [kd, skd]}
scale: {workers: 1, rules: [{match: {run.method.name: spherical_kd}, workers: 2}]}
"""
)
BACKBONE = (
    BASE.replace("validation: 0.2, ", "")
    + """
  method: feature_distillation
  task: features
scale: {workers: 1}
"""
)
SWEEP = (
    BASE
    + """
grid: {run.method: [kd], run.seed: [1, 2]}
scale: {workers: 1}
"""
)


class Prometheus:
    """A server that looks for Ray's nodes as Ray's own configuration has it, every two seconds."""

    def __init__(self, folder: Path, discovery: Path) -> None:
        assert PROMETHEUS is not None
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
            "scrape_configs": [
                {
                    "job_name": "ray",
                    "file_sd_configs": [{"files": [str(discovery)], "refresh_interval": "2s"}],
                    # The nodes by their ports, all of them on this machine.
                    "relabel_configs": [
                        {
                            "source_labels": ["__address__"],
                            "regex": ".*:(.*)",
                            "replacement": "127.0.0.1:$1",
                            "target_label": "__address__",
                        }
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        words = [PROMETHEUS, *words, f"--web.listen-address={self.address}", "--log.level=warn"]
        self.process = subprocess.Popen(words)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query has now; none while the server is not there yet."""
        words = urllib.parse.urlencode({"query": query})
        url = f"http://{self.address}/api/v1/query?{words}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{query}: {error.read().decode()}")
        except OSError:
            return []


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="kd", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextlib.contextmanager
def working(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that makes a cluster, does two runs and a sweep in it, and then waits."""
    texts = {"small": RUN, "backbone": BACKBONE, "swept": SWEEP}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    metrics, *others = free_ports(5)
    names = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
    environment = os.environ | {name: str(port) for name, port in zip(names, others, strict=False)}
    environment |= {
        "METRICS_PORT": str(metrics),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_metrics_report_interval_ms": "2000",
        "RAY_worker_niceness": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    script = Path(__file__).with_name("watched.py")
    words = [sys.executable, str(script), *(str(folder / f"{name}.yaml") for name in texts)]
    words += [f"file://{folder}/store", str(folder)]
    process = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_every_query_has_an_answer_while_raykd_works(short_path):
    asked = {title: filled(query) for title, query in queries().items()}
    asked |= {name: name for name in EXPORTED}  # also those that queries take for 0 if need be
    answered: dict[str, float] = {}
    found: dict[str, set[str]] = {"experiment": set(), "trial": set(), "rank": set()}
    discovery = short_path / "ray" / "prom_metrics_service_discovery.json"
    discovery.parent.mkdir()
    with working(short_path) as process:
        prometheus = Prometheus(short_path, discovery)
        try:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            started, over = time.monotonic(), False
            while not over:
                assert process.poll() is None, "the process that works has failed"
                over = "over" in (process.stdout.readline() or "")
                for title, query in asked.items():
                    if title not in answered and prometheus.ask(query):
                        answered[title] = time.monotonic() - started
                for tag, values in found.items():
                    for series in prometheus.ask(f"count by ({tag}) (ray_raykd_step_seconds)"):
                        values.add(series["metric"].get(tag, ""))
                time.sleep(1.0)
            # What is over is shown no more, and what it did is still counted.
            assert prometheus.ask("ray_raykd_images_total")
            deadline = time.monotonic() + 300
            while prometheus.ask('ray_raykd_epochs_done{experiment="small"}'):
                assert time.monotonic() < deadline, "a training that is over is still shown"
                time.sleep(1.0)
        finally:
            prometheus.process.kill()
            prometheus.process.wait()
    assert sorted(asked.keys() - answered.keys()) == []
    backbone, small, swept = sorted(found["experiment"])
    assert (backbone, small) == ("backbone", "small") and re.fullmatch("swept-[0-9a-f]+", swept)
    assert found["rank"] == {"0", "1"}
    # A packed student, one on Ray Train, a backbone, two trials of Tune.
    assert len(found["trial"]) >= 5
