"""Tell Ray that the cloud is about to take this node away, so that raykd keeps a checkpoint.

    RAY_ADDRESS=$RAY_HEAD_IP:6379 python spot_notice.py aws -- ray drain-node \\
        --address=$RAY_HEAD_IP:6379 --reason=DRAIN_NODE_REASON_PREEMPTION \\
        --reason-message=spot --deadline-remaining-seconds=110

Started beside `ray start` on every spot node; it asks the cloud's metadata service every few
seconds and runs the command once a notice is there. Without RAY_ADDRESS `ray drain-node` may start
a Ray of its own, and drain that (2.60). KubeRay needs none of it: Kubernetes ends a
pod's processes in order, and Ray drains its node.
"""

import argparse
import http.client
import subprocess
import sys
import time
import urllib.request

_AWS = "http://169.254.169.254"
_GCP = "http://metadata.google.internal"
_TIMEOUT = 5.0
_PATIENCE = 20.0


def noticed(cloud: str, address: str) -> bool:
    """Whether the metadata service at `address` says that this node will be taken away."""
    return _noticed_by_aws(address) if cloud == "aws" else _noticed_by_gcp(address)


def _noticed_by_aws(address: str) -> bool:
    """The document `spot/instance-action` exists from two minutes before (IMDSv2)."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _asked(f"{address}/latest/api/token", lifetime, "PUT")
    if token is None:
        return False
    own = {"X-aws-ec2-metadata-token": token}
    return _asked(f"{address}/latest/meta-data/spot/instance-action", own) is not None


def _noticed_by_gcp(address: str) -> bool:
    """The value `instance/preempted` is TRUE from 30 seconds before."""
    place = f"{address}/computeMetadata/v1/instance/preempted"
    return _asked(place, {"Metadata-Flavor": "Google"}) == "TRUE"


def _asked(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What the service says; None where there is no such document, or no answer."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return answer.read().decode().strip()
    except (OSError, http.client.HTTPException):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Tell Ray of a spot notice.")
    parser.add_argument("cloud", choices=("aws", "gcp"))
    parser.add_argument("--address", help="of the metadata service; the cloud's own if not given")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    given = parser.parse_args()
    address = given.address or (_AWS if given.cloud == "aws" else _GCP)
    while not noticed(given.cloud, address):
        time.sleep(given.every)
    print("this node will be taken away:", *given.command, flush=True)
    while not _done(given.command):  # the head may be busy; after the node nobody asks any more
        time.sleep(given.every)
    return 0


def _done(command: list[str]) -> bool:
    """Whether a command ends as it should, and in time."""
    try:
        return subprocess.run(command, check=False, timeout=_PATIENCE).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    sys.exit(main())
