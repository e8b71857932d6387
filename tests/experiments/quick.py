"""A run of seconds of every script of experiments/: do they still work?

    python -m tests.experiments.quick [NAME ...]

What they measure or train is far too little to say anything; each keeps what it makes in a
temporary folder. Two run at a time; those that start Ray run alone, since a Ray cluster beside
another script may miss its heartbeats. Ends with status 1 where one failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LIMIT = 900  # seconds of one script, many times what it takes on two quiet cores
RUNS: dict[str, tuple[str, ...]] = {
    "benchmarks.big_teacher": ("--quick",),
    "benchmarks.cache": ("--quick", "--pairs", "1"),
    "benchmarks.codec": ("--quick",),
    "benchmarks.distractors": ("--quick",),
    "benchmarks.gpu": ("--quick", "--pairs", "1"),
    "benchmarks.methods": ("--quick", "--pairs", "1"),
    "benchmarks.peers": ("--quick",),
    "benchmarks.published": ("--quick", "--pairs", "1"),
    "benchmarks.sakd": ("--quick",),
    "benchmarks.scale": ("--quick",),
    "benchmarks.startup": ("--quick",),
    "benchmarks.step": ("--quick", "--pairs", "1"),
    "benchmarks.sweep": ("--quick",),
    "benchmarks.views": ("--quick",),
    "studies.cifar10_methods": ("--quick",),
    "studies.cifar10_sakd": ("--quick",),
    "faces": ("--quick",),
    "foundation": ("--quick",),
    "imagenet_skd": ("--tiny", "--workers", "0", "--views", "1"),
    "studies.method_grid": ("--quick",),
    "studies.probes": ("--quick",),
    "rco_sweep": ("--quick",),
    "retrieval": ("--quick",),
    "studies.scaling": ("--quick",),
    "studies.views_study": ("--tiny", "--epochs", "6", "--views", "1,all,live", "--seeds", "2"),
}
WITHOUT_RAY = {
    f"benchmarks.{name}"
    for name in (
        "big_teacher",
        "cache",
        "codec",
        "distractors",
        "gpu",
        "methods",
        "peers",
        "published",
        "sakd",
        "scale",
        "startup",
        "step",
        "views",
    )
} | {"faces", "foundation", "imagenet_skd", "retrieval", "studies.probes", "studies.scaling"}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(RUNS)))
def main(names: tuple[str, ...]) -> None:
    """Run all scripts, or those that are named."""
    chosen = names or tuple(RUNS)
    with ThreadPoolExecutor(2) as pool:
        failures = [*pool.map(_failure, [name for name in chosen if name in WITHOUT_RAY])]
    failures += [_failure(name) for name in chosen if name not in WITHOUT_RAY]
    sys.exit(1 if any(failures) else 0)


def _failure(name: str) -> str | None:
    """Run a script; the reason of its failure, if any. A failed one's last lines are printed."""
    script = ["-m", f"experiments.{name}"] if "." in name else [str(EXPERIMENTS / f"{name}.py")]
    command = [sys.executable, *script, *RUNS[name]]
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
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
    click.echo(f"{name}: {why or 'done'} after {time.monotonic() - started:.0f} s")
    return why


if __name__ == "__main__":
    main()
