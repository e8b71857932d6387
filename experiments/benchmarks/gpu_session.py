"""Everything that a machine with a GPU is asked, in order of importance, within some minutes.

    make gpu [MINUTES=8] [CIFAR=FOLDER]      python -m experiments.benchmarks.gpu_session

It needs torch, torchvision, timm, pyarrow, pytest and what `raykd` imports besides, but not Ray. A
package that the machine lacks can travel as a wheel in the folder `.whl`, which is put before the
others. Each part runs in a process of its own and gives way when its time is over; what it printed
is written to the Markdown file right away, so that a cut leaves what was done.

`--rehearse` takes one part of each kind, with sizes that a CPU manages.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".whl"
TESTS = ("training/test_gpu", "core/test_keyed_random", "data/transforms/test_augment")
TESTS += ("data/loading/test_loader", "report/test_forward")
_CUT = 5.0  # seconds that a part has for its end
_SLOWER = 6  # times that a part of a rehearsal may take longer


@dataclass(frozen=True)
class Part:
    """A command, and the most seconds that it may take."""

    title: str
    words: Sequence[str]  # arguments of Python
    seconds: float


def parts(*, rehearse: bool, cifar: Path | None, shared: Path) -> Iterator[Part]:
    """The parts, the most important one first."""
    bench = ("-m", "experiments.benchmarks.gpu")
    small = ("--quick", "--pairs", "1") if rehearse else ("--pairs", "3")
    files = [str(ROOT / "tests" / f"{name}.py") for name in TESTS]
    chosen = "gpu and not ray" if not rehearse else "not gpu and not ray and not slow"
    quiet = ("-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
    files = files[1:2] if rehearse else files
    yield Part("Tests", ("-m", "pytest", *quiet, "-m", chosen, *files), 120)
    kinds = ((32, "bfloat16"), (224, "bfloat16"), (32, "float32"))
    for side, precision in kinds[:2] if rehearse else kinds:
        words = (*bench, *small, "--only", "steps", "--side", str(side), "--precision", precision)
        yield Part(f"Steps at {side} pixels in {precision}", words, 60)
    for count in (1, 2) if rehearse else (1, 2, 4):
        words = ("-m", "experiments.benchmarks.gpu_session", "--processes", str(count))
        words += ("--speeds", str(shared), *(("--rehearse",) if rehearse else ()))
        yield Part(f"{count} students at a time", words, 30)
    for side in ("32",) if rehearse else ("32", "224"):
        words = (*bench, *small, "--only", "precompute", "--side", side)
        yield Part(f"Precompute at {side} pixels", words, 30)
    decoders = ("1",) if rehearse else ("1", "4", "12")
    options = [word for number in decoders for word in ("--decoders", number)]
    yield Part("Images", (*bench, *small, "--only", "loader", *options), 60)
    if cifar is not None:
        yield Part("resnet56 to resnet20 on CIFAR-10", _cifar(cifar, rehearse=rehearse), 480)


def _cifar(folder: Path, *, rehearse: bool) -> Sequence[str]:
    """A student of CIFAR-10, in this process."""
    epochs = 1 if rehearse else 30
    file = ROOT / "experiments" / "recipes" / "cifar10.yaml"
    settings = {
        "data.path": folder,
        "grid": "{run.method: [label_only, kd]}",
        "run.teacher.model": "resnet8" if rehearse else "resnet56",
        "run.model": "resnet8" if rehearse else "resnet20",
        "run.optim.epochs": epochs,
        "run.teacher.optim.epochs": epochs,
        "scale.workers": 0,
    }
    program = "from raykd.cli import main; main()"
    return ("-c", program, "run", str(file), *(f"{key}={value}" for key, value in settings.items()))


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("gpu.md"))
@click.option("--minutes", default=8.0, show_default=True, help="Time for all of it.")
@click.option("--cifar", type=click.Path(path_type=Path), help="CIFAR-10's files, if there.")
@click.option("--rehearse", is_flag=True, help="Sizes of a CPU.")
@click.option("--processes", type=int, hidden=True)
@click.option("--speeds", type=click.Path(path_type=Path), hidden=True)
@click.option("--alone", is_flag=True, hidden=True)
def main(
    output: Path,
    minutes: float,
    cifar: Path | None,
    rehearse: bool,
    processes: int | None,
    speeds: Path | None,
    alone: bool,
) -> None:
    """Run the parts, print their Markdown, and keep it in a file."""
    if alone:
        _train_alone(rehearse=rehearse)
    elif processes is not None and speeds is not None:
        _train_together(processes, speeds, rehearse=rehearse)
    else:
        failed = _session(output, 60 * minutes, cifar, rehearse=rehearse)
        sys.exit(1 if failed else 0)


def _session(output: Path, seconds: float, cifar: Path | None, *, rehearse: bool) -> list[str]:
    """All parts, one after another; the titles of those that failed, but not of those cut."""
    failed: list[str] = []
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        environment = _environment(Path(name))
        output.write_text("## GPU\n\n")
        for part in parts(rehearse=rehearse, cifar=cifar, shared=Path(name) / "speeds.json"):
            left = until - time.monotonic() - _CUT
            text, status = "no time left", 0
            if left > 0:
                most = part.seconds * (_SLOWER if rehearse else 1)
                text, status = _run(part, min(most, left), environment)
            failed += [part.title] if status else []
            with output.open("a") as file:
                file.write(section := f"### {part.title}\n\n{text}\n\n")
            click.echo(section)
    return failed


def _environment(folder: Path) -> dict[str, str]:
    """The environment of all parts; wheels that came along are installed for them."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if wheels := sorted(map(str, WHEELS.glob("*.whl"))):
        target = folder / "site"
        install = ("install", "-q", "--no-index", "--no-deps", "--target", str(target))
        subprocess.run([sys.executable, "-m", "pip", *install, *wheels], check=True)
        paths.insert(1, str(target))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _run(part: Part, seconds: float, environment: dict[str, str]) -> tuple[str, int]:
    """The output of a part with a line on its end, and its status, 0 where it was cut."""
    started = time.monotonic()
    command = [sys.executable, *part.words]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
            end = "" if status == 0 else f"ended with status {status} "
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status, end = 0, "cut "
        said.seek(0)
        text = said.read().strip()
    return f"{text}\n\n({end}after {time.monotonic() - started:.0f} s)", status


def _train_alone(*, rehearse: bool) -> None:
    """Steps of a cached student for some seconds from a line on standard input on."""
    import torch

    from experiments.benchmarks.gpu import cached_steps

    step, images = cached_steps(rehearse=rehearse)
    for _ in range(1 if rehearse else 20):
        step()
    cuda = torch.cuda.is_available()
    print("ready", flush=True)
    sys.stdin.readline()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < (0.5 if rehearse else 10):
        for _ in range(1 if rehearse else 20):
            step()
            done += images
        if cuda:
            torch.cuda.synchronize()
    print(done / (time.perf_counter() - started), flush=True)


def _train_together(count: int, speeds: Path, *, rehearse: bool) -> None:
    """Images per second of several processes on one device, over those of one."""
    words = ["-m", "experiments.benchmarks.gpu_session", "--alone"]
    words += ["--rehearse"] if rehearse else []
    workers = [
        subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    for worker in workers:
        _line(worker)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    rates = [float(_line(worker)) for worker in workers]
    before = json.loads(speeds.read_text()) if speeds.exists() else {}
    before[str(count)] = sum(rates)
    speeds.write_text(json.dumps(before))
    one = before.get("1")
    ratio = "" if one is None else f", {sum(rates) / one:.2f} of one process"
    click.echo(f"{sum(rates):,.0f} images/s together, {statistics.median(rates):,.0f} each{ratio}")


def _line(worker: "subprocess.Popen[str]") -> str:
    """The next line of a process. Raises `RuntimeError` where it has ended."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that trains ended with status {worker.wait()}")
    return line


if __name__ == "__main__":
    main()
