"""The watcher of spot notices, against servers that answer as the clouds' metadata services do."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "spot_notice.py"


class Metadata(BaseHTTPRequestHandler):
    """Says that the node will be taken away when asked for the third time."""

    def do_PUT(self):
        known = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer("secret" if known and self.path == "/latest/api/token" else None)

    def do_GET(self):
        self.server.asked += 1
        due = self.server.asked >= 3
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "secret"
            self._answer('{"action": "terminate"}' if due else None)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer("TRUE" if due else "FALSE")

    def _answer(self, text):
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_command_runs_once_the_cloud_says_so(service, cloud, tmp_path):
    address = f"http://127.0.0.1:{service.server_port}"
    noticed = tmp_path / "noticed"
    command = [sys.executable, str(SCRIPT), cloud, "--address", address, "--every", "0.05"]
    done = subprocess.run(
        [*command, "--", "touch", str(noticed)], check=True, capture_output=True, text=True
    )
    # On a busy machine it may ask again, since the answer came too late.
    assert noticed.exists() and service.asked >= 3
    assert done.stdout == f"this node will be taken away: touch {noticed}\n"
