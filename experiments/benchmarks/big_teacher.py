"""Costs of a large teacher: its pass into a cache over its bare forward, and whole students.

    python -m experiments.benchmarks.big_teacher [--json PATH] [--pairs N] [--quick]
        [--pictures FOLDER] [--weights FILE] [--only precompute|students] [--side N] [--batch N]

Precompute: the work of one worker, and of two at the same time on a core each, over as many
processes of the bare forward with one thread each, on ready tensors of the same batch. It goes
from JPEG files, once decoding by itself (all that a user pays), and once with a process that
decodes ahead (what the teacher's own process then spends). CPU time; the two sides take turns.

Students: a whole student from the files, its teacher's pass included, at V views over E epochs,
over the same student with the live teacher at 224 pixels in every step, and over timm's loop; all
in one run and in processes of their own (`peer_loops`).

FOLDER and FILE are those of `peers`; without them pictures are drawn and weights are random, and
those of the transformer always are: times do not depend on them.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from experiments.benchmarks.measure import Row, compared, interleaved, show
from experiments.benchmarks.peer_loops import (
    RAYKD,
    Loop,
    Measured,
    Work,
    measured,
    raykd_cached,
    recipe_of,
    timm,
)
from experiments.benchmarks.peers import PUBLISHED, Amount, jpeg_pictures
from raykd import models
from raykd.config.scale import Scale
from raykd.outputs.manifest import Part
from raykd.recipes import OutputsRun, TeacherRun
from raykd.storage.store import Store
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import ShardMaker, local_host, train
from raykd.training.weights import save_weights

SIDE = 224  # pixels that the teachers see
TRANSFORMER = "timm/vit_small_patch16_224"
PRECISIONS = ("float32", "bfloat16")
PRECOMPUTE, FEW = Amount(82, 10, 4, 1, 10), Amount(20, 10, 4, 1, 10)
STUDENTS, FEW_STUDENTS = Amount(200, 20, 20, 5, 20), Amount(20, 10, 4, 1, 10)
SHARES = ((4, 1 / 3), (10, 1 / 5))  # epochs per view, and the most of the live student's time
FILES, AHEAD, BARE = "from the files", "decoded ahead", "bare forward"


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--pairs", default=3, show_default=True, help="Pairs of each measurement.")
@click.option("--quick", is_flag=True, help="Few pictures, one pair, no transformer.")
@click.option("--pictures", type=click.Path(path_type=Path, exists=True), help="JPEG pictures.")
@click.option("--weights", "given", type=click.Path(path_type=Path, exists=True), help="Teacher's.")
@click.option("--only", type=click.Choice(["precompute", "students"]), help="That part alone.")
@click.option("--side", default=96, show_default=True, help="Pixels that students see.")
@click.option("--batch", type=int, help="Pictures of a student's step, instead of 20.")
def main(
    target: Path | None,
    pairs: int,
    quick: bool,
    pictures: Path | None,
    given: Path | None,
    only: str | None,
    side: int,
    batch: int | None,
) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes started here
    pairs = 1 if quick else pairs
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if only != "students":
            amount = FEW if quick else PRECOMPUTE
            work = jpeg_pictures(folder / "pass", amount, pictures, given, side=SIDE)
            for teacher in (PUBLISHED,) if quick else (PUBLISHED, TRANSFORMER):
                rows += precompute(_of(teacher, work), pairs, PRECISIONS[: 1 if quick else None])
        if only != "precompute":
            amount = FEW_STUDENTS if quick else STUDENTS
            amount = replace(amount, batch=batch or amount.batch)
            work = jpeg_pictures(
                folder / "students", amount, pictures, given, side=side, teacher_side=SIDE
            )
            rows += students(work, 1)
    show("large teachers", rows, target)


# Precompute


def _of(teacher: str, work: Work) -> Work:
    """The work with another teacher, of random weights."""
    if teacher == work.teacher:
        return work
    path = work.folder / "another.safetensors"
    torch.manual_seed(0)
    save_weights(path, models.build(teacher, work.outputs))
    return replace(work, teacher=teacher, weights=path)


@dataclass(frozen=True)
class _Pass:
    """A cache to compute parts of, in a store that has the teacher and the images."""

    store: Path
    run: OutputsRun
    rows: int
    pairs: int


def precompute(work: Work, pairs: int, precisions: Sequence[str]) -> Iterator[Row]:
    """The ratios of one teacher, in some precisions, with one worker and two."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        student = recipe_of(work, store)
        teacher = student.teacher
        rows = sum(1 for path in (work.folder / "train").rglob("*.jpg"))
        assert isinstance(teacher, TeacherRun)
        train(store, teacher, local_host(store, teacher))
        for precision in precisions:
            run = student.model_copy(update={"teacher_precision": precision}).outputs_at(0)
            for workers in (1, 2):
                where = f"{work.teacher.removeprefix('timm/')}, {precision}, {workers} worker"
                where += "s" if workers > 1 else ""
                click.echo(f"precompute, {where} ...", err=True)
                seconds = _seconds(_Pass(store.root, run, rows, pairs), workers)
                yield from _ratios(where, seconds)


def _ratios(where: str, seconds: dict[str, list[float]]) -> Iterator[Row]:
    base = ("bare forward on ready tensors", seconds[BARE])
    for what, more in ((FILES, "decoding included"), (AHEAD, "the teacher's process alone")):
        ours = (f"shards, {what}", seconds[what])
        name = f"precompute over the bare forward, {what}: {where}"
        yield compared(name, ours, base, 0.97, "row", more=more)


def _seconds(work: _Pass, workers: int) -> dict[str, list[float]]:
    """CPU seconds of a row on each side in each pair: the mean over `workers` at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, _join, (barrier,)) as pool:
        each = [*pool.map(_measure, [work] * workers)]
    return {
        side: [sum(values) / workers for values in zip(*(one[side] for one in each), strict=True)]
        for side in each[0]
    }


_together: list[Barrier] = []  # in a process that measures: what it shares with the others


def _join(barrier: Any) -> None:
    """Begin a process that measures: one thread, and raykd's own allocator settings."""
    _together.append(barrier)
    torch.set_num_threads(1)
    keep_freed_memory()


def _measure(work: _Pass) -> dict[str, list[float]]:
    """CPU seconds of a row of this process, in which each side begins when all others do."""
    store, device = Store(work.store), torch.device("cpu")
    makers = {
        what: ShardMaker(store, work.run, device, Scale(decoders=decoders))
        for what, decoders in ((FILES, 0), (AHEAD, 1))
    }
    maker = makers[FILES]
    batches = [batch.pixels for batch in maker.views.runs(torch.arange(work.rows), maker.size)]
    bfloat16 = work.run.precision == "bfloat16"
    turn = iter(range(1 << 62))

    def bare() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, bfloat16):
            for pixels in batches:
                maker.teacher.network(pixels)

    def made(maker: ShardMaker) -> Callable[[], object]:
        # No two processes write the same shard: a view is a part of its name.
        first = 1000 * (os.getpid() % 1000)
        return lambda: maker.make(Part(first + next(turn), 0, work.rows))

    sides = {BARE: bare, **{what: made(maker) for what, maker in makers.items()}}
    return interleaved({what: _side(do, work.rows) for what, do in sides.items()}, work.pairs)


def _side(do: Callable[[], object], rows: int) -> Callable[[], float]:
    def once() -> float:
        for barrier in _together:
            barrier.wait()
        started = time.process_time()
        do()
        return (time.process_time() - started) / rows

    return once


# Whole students


def students(work: Work, rounds: int) -> Iterator[Row]:
    """The ratios of whole students: from the cache, with the live teacher, and by timm."""
    loops: dict[str, tuple[Loop, Work]] = {
        f"V / E = 1/{share}": (raykd_cached, replace(work, views=max(1, work.epochs // share)))
        for share, _ in SHARES
    }
    loops["live"] = RAYKD["raykd, live"], work
    loops["timm"] = timm, work
    found: dict[str, list[Measured]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in list(loops)[:: -1 if number % 2 else 1]:
            loop, one = loops[name]
            found[name].append(measured(loop, replace(one, seed=number)))
            said = found[name][-1]
            click.echo(f"a student, {name}: {said.whole.cpu:.1f} s of CPU time", err=True)
    cpu = {name: [one.whole.cpu for one in each] for name, each in found.items()}
    pictures = work.steps() * work.batch
    for other in ("live", "timm"):
        for share, goal in SHARES:
            name = f"V / E = 1/{share}"
            more = "; ".join(
                f"{who}: {median(one.whole.wall for one in found[who]):.0f} s by the clock, "
                f"top-1 {median(one.top1 for one in found[who]):.1f} %"
                for who in (name, other)
            )
            more = f"{work.epochs} epochs of {pictures} pictures; {more}"
            ours, base = (f"from the cache, {name}", cpu[name]), (other, cpu[other])
            aimed = goal if other == "live" else None
            what = f"a whole student, teacher's pass included, over {other}, {name}"
            yield compared(what, ours, base, aimed, "student", "lower", more)


if __name__ == "__main__":
    main()
