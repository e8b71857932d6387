"""A Ray head of its own with a token, on loopback, and jobs that are given to it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# What a head or a job of someone else may have left in this process.
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR")


class Head:
    """`ray start --head` under a home folder of its own, by which its processes are known.

    Sockets have names of at most 107 bytes, so the folder is not one of pytest's.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="raykd-"))
        self.home = self.folder / "home"
        self.home.mkdir()
        gcs, dashboard, client, agent = free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment = {k: v for k, v in os.environ.items() if k not in FOREIGN} | {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": self.address,
        }
        try:
            self.ray("get-auth-token", "--generate")
            words = f"--head --port {gcs} --dashboard-host 127.0.0.1 --dashboard-port {dashboard}"
            words += f" --ray-client-server-port {client} --dashboard-agent-listen-port {agent}"
            words += f" --temp-dir {self.folder} --num-cpus 4 --object-store-memory {200 << 20}"
            self.ray("start", *words.split())
        except BaseException:
            self.end()
            raise

    def ray(self, *words: str, code: int = 0, **environment: str) -> str:
        """Output of a `ray` command, on both streams."""
        done = self._run(words, environment)
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def submit(self, name: str, *entrypoint: str, wait: bool = False) -> str:
        """Give the head a job, with this checkout as its working directory."""
        options = ["--submission-id", name, *([] if wait else ["--no-wait"])]
        options += ["--runtime-env", "cluster/runtime_env.yaml", "--working-dir", "."]
        deadline = time.monotonic() + 240
        while True:
            done = self._run(("job", "submit", *options, "--", *entrypoint), {})
            # For some seconds after `ray start` no agent is there that could run a job.
            if "No available agent" not in done.stdout or time.monotonic() > deadline:
                assert done.returncode == 0, done.stdout[-4000:]
                return done.stdout
            time.sleep(1)

    def _run(self, words: Sequence[str], environment: Mapping[str, str]) -> Any:
        return subprocess.run(
            [BIN / "ray", *words],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def follow(self, name: str, until: str) -> list[str]:
        """The lines of a job's log as `ray job logs --follow` gives them, up to one with a text."""
        lines = []
        words = [BIN / "ray", "job", "logs", "--follow", name]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, env=self.environment, stdout=pipe, text=True) as following:
            assert following.stdout is not None
            for line in following.stdout:
                lines.append(line)
                if until in line:
                    following.terminate()
                    return lines
        raise AssertionError(f"the log ended without {until!r}:\n{''.join(lines[-40:])}")

    def uploaded(self) -> list[Path]:
        """The files of the working directories that were unpacked for jobs."""
        folder = self.folder / "session_latest" / "runtime_resources" / "working_dir_files"
        return [path for path in folder.glob("_ray_pkg_*/**/*") if path.is_file()]

    def processes(self, words: str = "") -> list[int]:
        """The ids of this head's processes, with some words in their command."""
        return processes(self.home, words)

    def end(self) -> None:
        """Kill what was started here; `ray stop` would end every cluster of the machine."""
        end(self.home)
        shutil.rmtree(self.folder, ignore_errors=True)


def processes(home: Path, words: str = "") -> list[int]:
    """The ids of the processes with a home folder, and some words in their command."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                command = (
                    (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                )
            except OSError:
                continue
            if f"HOME={home}".encode() in variables and words in command:
                found.append(int(folder.name))
    return found


def end(home: Path) -> None:
    """Kill the processes with a home folder."""
    while found := processes(home):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
