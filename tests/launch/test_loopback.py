"""Reach of a cluster that raykd starts for itself, and the location of its files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.ray_head import FOREIGN
from tests.launch.ray_marks import RAY

pytestmark = [*RAY, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
from raykd.config.scale import Scale
from raykd.launch.cluster import connected

def descendants(pid):
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has just ended
            continue
        for child in children:
            yield child
            yield from descendants(child)

def listening():
    # Addresses and ports of the sockets that this process and those that it began listen on.
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
                yield fields[1]

said = []
with connected(Scale(), said.append, 1):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    address = ray.get_runtime_context().gcs_address
    found = {"listening": [*listening()], "token": os.environ["RAY_AUTH_TOKEN_PATH"]}
    for name, prefix, words in json.loads(sys.argv[1]):
        folder = os.path.dirname(found["token"])
        words = [word.replace("ADDRESS", address).replace("FOLDER", folder) for word in words]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        clean |= {"RAY_ADDRESS": address} if name == "joining" else {}
        clean |= {"HOME": "/", "PORTS": json.dumps(found["listening"])} if prefix else {}
        done = subprocess.run([*prefix, *words], env=clean, capture_output=True, text=True)
        found[name] = [done.returncode, done.stdout, done.stderr]
print(json.dumps(found | {"said": said}))
"""
# A second command of the same user, which knows nothing but the address.
JOINING = """
from raykd.config.scale import Scale
from raykd.launch.cluster import connected
with connected(Scale(), print):
    import ray
    from ray.util.state import list_nodes
    print("sum", ray.get(ray.remote(lambda: 20 + 22).remote()), "nodes", len(list_nodes()))
"""
# Another user, who asks every port for a job over HTTP, and the head by Ray's own protocol. Ray
# is imported before, so that it is not the files of this checkout that keep them out.
STRANGER = """
import http.client, json, os, urllib.error, urllib.request
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2 as messages, gcs_service_pb2_grpc as calls
import grpc, sys

if os.environ.get("AS"):
    os.setgroups([]); os.setgid(int(os.environ["AS"])); os.setuid(int(os.environ["AS"]))
body = json.dumps({"entrypoint": "id"}).encode()
for port in sorted({int(each.rpartition(":")[2], 16) for each in json.loads(os.environ["PORTS"])}):
    for path in ("/api/jobs/", "/api/job_agent/jobs/", "/get_or_create_runtime_env"):
        url, kind = f"http://127.0.0.1:{port}{path}", {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=10) as got:
                print("http", port, path, got.status)
        except urllib.error.HTTPError as error:
            print("http", port, path, error.code)
        except (OSError, http.client.HTTPException) as error:
            print("other", port, path, type(error).__name__)
stub = calls.InternalKVGcsServiceStub(init_grpc_channel(sys.argv[1]))
try:
    stub.InternalKVKeys(messages.InternalKVKeysRequest(prefix=b""), timeout=20)
    print("keys read")
except grpc.RpcError as error:
    print("grpc", error.code().name)
try:
    open(sys.argv[2] + "/token")
    print("token read")
except OSError as error:
    print("token", type(error).__name__)
"""
# 127.0.0.1 as the kernel writes it, plain and within IPv6; ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_cluster_of_our_own_is_this_user_s_alone_wherever_temporary_files_lie(tmp_path):
    long = tmp_path / ("a-folder-with-a-long-name" * 4)  # longer than Ray's sockets may have it
    long.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in (*FOREIGN, "RAY_AUTH_MODE")}
    environment |= {"RAY_TMPDIR": str(long), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    python = sys.executable
    calls: list[list[object]] = [["joining", [], [python, "-c", JOINING]]]
    if os.getuid() == 0:
        stranger = ["env", "AS=65534"]
        calls.append(["stranger", stranger, [python, "-c", STRANGER, "ADDRESS", "FOLDER"]])
    words = [python, "-c", SCRIPT, json.dumps(calls)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 5
    addresses = {each.partition(":")[0] for each in found["listening"]}
    assert addresses <= LOOPBACK, addresses
    said = "\n".join(found["said"])
    assert "is too long a name for Ray's sockets" in said
    assert f"both ask for the token in {found['token']}" in said
    assert not Path(found["token"]).parent.exists()  # it went with the cluster
    assert not (tmp_path / ".ray").exists()  # no token of other clusters' was made
    status, output, errors = found["joining"]
    assert status == 0 and "sum 42 nodes 1" in output, errors
    if os.getuid() == 0:
        status, output, errors = found["stranger"]
        assert status == 0, errors
        lines = [line.split() for line in output.splitlines()]
        answers = {line[-1] for line in lines if line[0] == "http"}
        assert "401" in answers and not answers & {"200", "201"}, output
        assert ["grpc", "UNAUTHENTICATED"] in lines
        assert ["token", "PermissionError"] in lines
    shutil.rmtree(long)
