"""Who can reach a cluster that raykd starts for itself."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launch.marks import RAY

pytestmark = [*RAY, pytest.mark.timeout(300)]

SCRIPT = """
import os
from pathlib import Path
from raykd.scale import Scale
from raykd.launch.cluster import connected

def descendants(pid):
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield child
            yield from descendants(child)

def listening():
    # Addresses of the sockets that this process and those that it began listen on.
    inodes = set()
    for pid in ["self", *descendants(os.getpid())]:
        try:
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:")}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                yield fields[1].partition(":")[0]

with connected(Scale(), lambda text: None, 1):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    print(*listening())
"""
# 127.0.0.1 as the kernel writes it, plain and within IPv6; ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_cluster_of_our_own_listens_on_loopback_alone():
    folder = tempfile.mkdtemp(prefix="rk")  # short: sockets lie in there
    environment = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert len(found) > 5
    assert set(found) <= LOOPBACK, found
