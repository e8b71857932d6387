"""A run of seconds of every script of experiments/: do they still work?

    python -m tests.experiments.quick [NAME ...]

What they measure or train is far too little to say anything; each keeps what it makes in a
temporary folder, and they run one after the other. Ends with status 1 where one failed.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LIMIT = 600  # seconds of one script, many times what it takes on two quiet cores
RUNS: dict[str, tuple[str, ...]] = {
    "benchmarks.cache": ("--quick", "--pairs", "1"),
    "benchmarks.codec": ("--quick",),
    "benchmarks.gpu": ("--quick", "--pairs", "1"),
    "benchmarks.methods": ("--quick", "--pairs", "1"),
    "benchmarks.sakd": ("--quick",),
    "benchmarks.step": ("--quick", "--pairs", "1"),
    "benchmarks.sweep": ("--quick",),
    "benchmarks.views": ("--quick",),
    "studies.cifar10_methods": ("--quick",),
    "studies.cifar10_sakd": ("--quick",),
    "imagenet_skd": ("--tiny", "--workers", "0", "--views", "1"),
    "studies.method_grid": ("--quick",),
    "rco_sweep": ("--quick",),
    "studies.scaling": ("--quick",),
    "studies.views_study": ("--tiny", "--epochs", "6", "--views", "1,all,live", "--seeds", "2"),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(RUNS)))
def main(names: tuple[str, ...]) -> None:
    """Run them, or those that are named."""
    failed = []
    for name in names or RUNS:
        started, used = time.monotonic(), _cpu_seconds()
        why = _failure(name)
        passed, used = time.monotonic() - started, _cpu_seconds() - used
        click.echo(f"{name}: {why or 'done'} after {passed:.0f} s, {used:.0f} s of CPU time")
        failed += [name] if why else []
    sys.exit(1 if failed else 0)


def _cpu_seconds() -> float:
    """CPU seconds of all scripts so far, with the processes that they waited for (not Ray's)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _failure(name: str) -> str | None:
    """Run one script; how it failed, if it did, with what it said last."""
    script = ["-m", f"experiments.{name}"] if "." in name else [str(EXPERIMENTS / f"{name}.py")]
    command = [sys.executable, *script, *RUNS[name]]
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent)}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=said,
                stderr=said,
                check=False,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            why = f"stopped after {LIMIT} s"
        else:
            why = f"failed with status {done.returncode}" if done.returncode else None
        if why is not None:
            said.seek(0)
            click.echo(said.read()[-4000:], err=True)
    return why


if __name__ == "__main__":
    main()
