"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_freed_blocks_are_not_given_back_where_glibc_is_in_use():
    # In a process of its own: the setting lasts.
    script = (
        "import resource, torch; from raykd.training.memory import keep_freed_memory\n"
        "kept = keep_freed_memory(); torch.set_num_threads(1)\n"
        "def step(): x = [torch.ones(1 << 20) for _ in range(8)]\n"
        "step(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): step()\n"
        "print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    kept, faults = done.stdout.split()
    assert kept == str(platform.libc_ver()[0] == "glibc")
    if kept == "True":
        # 32 MB are 8,192 pages, which each of the ten steps would take anew; one may, where the
        # blocks do not fit into the holes at first.
        assert int(faults) < 2 * 8192
