"""Scaling of training: measured on this machine, and computed for a cluster.

    python -m experiments.studies.scaling                # both, some three minutes
    python -m experiments.studies.scaling --no-measure   # arithmetic alone

`--page experiments/studies/scaling.md` also writes the tables into that page.

Measured: steps of KD from known logits, resnet20 at 32 x 32, one global batch on 1, 2 and 4
processes that average gradients over gloo on loopback; the same steps alone with smaller batches;
messages of several sizes; reading and writing of shards; decoding; checkpoints; and reports to Ray
Tune's driver. Predicted: `raykd.planning.scaling` for resnet18 from resnet34 at 224 x 224.
"""

import functools
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from experiments.benchmarks.photographs import photograph
from raykd import models
from raykd.core.types import Batch, Outputs
from raykd.data.sources.encoded_image import open_image
from raykd.methods.kd import KD
from raykd.models.flops import flop_counter
from raykd.models.staged import parameter_count, unallocated
from raykd.outputs.codecs import Dense, TopK
from raykd.planning import scaling
from raykd.planning.forecast import read_cluster
from raykd.planning.scaling import Cluster, Work
from raykd.storage import arrow
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.hosts.group import GroupHost
from raykd.training.learner import Learner

MACHINES = Path(__file__).parents[2] / "cluster" / "machines.yaml"
WORLDS = (1, 2, 4)
MODEL, CLASSES, SIDE = "resnet20", 100, 32
BATCH = 256  # global
QUICK_WORLDS = (1, 2)
WARM, STEPS = 2, 8
MESSAGES = (1 << 10, 1 << 16, 1 << 20, 1 << 23, 46_758_048)  # bytes; the last: resnet18's gradients
SHARD_BYTES = 256 << 20
GPUS = (1, 8, 16, 32, 64, 128, 256, 512)
# ImageNet: training images, and bytes of one as it is distributed, on average (138 GB in all).
IMAGES, ENCODED = 1_281_167, 108_000
EACH = 256  # images of a step on one GPU, where the batch grows with the GPUs
WHOLE = 2048  # of all GPUs, where it does not
DECODE, REPORT = 0.000963, 0.001814  # seconds, as scaling.md has them: where nothing is measured

_DENSE, _TOPK = Dense().bytes_per_row(1000), TopK(k=10).bytes_per_row(1000)

Table = list[list[str]]


def step_of(host: Any, size: int) -> Callable[[], None]:
    """A training step of `size` images on one worker: the project's own learner, and SGD."""
    torch.manual_seed(0)
    learner = Learner(models.build(MODEL, CLASSES), KD(), nn.ModuleDict())
    wrapped = host.weights.wrap(learner, None)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9)
    pixels = torch.randn(size, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    ids = torch.arange(size)
    batch, known = Batch(pixels, ids % CLASSES, ids, 0, 0), Outputs(torch.randn(size, CLASSES))

    def step() -> None:
        losses, _ = wrapped(batch, known, 1.0)
        torch.stack([*losses.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def timed(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Median wall seconds and mean CPU seconds (all threads of this process) of a call."""
    for _ in range(WARM):
        call()
    walls, cpu = [], time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        call()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls), (time.process_time() - cpu) / times


def in_group(world: int, folder: Path, what: str) -> list[Any]:
    """Measurements of every process of a gloo group on loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for old in folder.glob("*"):
        old.unlink()
    spawn(_join, (world, str(folder), what), nprocs=world)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _join(rank: int, world: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    seconds = _steps(world, Path(folder)) if what == "steps" else _messages()
    Path(folder, f"{rank}.json").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def _steps(world: int, folder: Path) -> tuple[float, float]:
    host = GroupHost(Checkpoints(folder), torch.device("cpu"))
    return timed(step_of(host, BATCH // world), STEPS)


def _messages() -> list[float]:
    """Median seconds of an allreduce of each size."""
    seconds = []
    for size in MESSAGES:
        tensor = torch.zeros(size // 4)
        seconds.append(timed(lambda tensor=tensor: dist.all_reduce(tensor), 10)[0])
    return seconds


def scaling_here(
    folder: Path, wire: dict[str, float], rounds: int, worlds: Sequence[int]
) -> tuple[Table, Table, dict[str, float]]:
    """Steps of one batch on several processes, steps alone, and what follows from those."""
    group: dict[int, list[tuple[float, float]]] = {world: [] for world in worlds}
    alone: dict[int, list[tuple[float, float]]] = {BATCH // world: [] for world in worlds}
    for _ in range(rounds):  # in turns, so that other work on the machine slows each alike
        for world in worlds:
            parts = in_group(world, folder, "steps")
            wall = max(wall for wall, _ in parts)
            group[world].append((wall, sum(cpu for _, cpu in parts)))
        for size, found in alone.items():
            host = LocalHost(Checkpoints(folder), torch.device("cpu"))
            found.append(timed(step_of(host, size), STEPS))
    # fixed + B * image, through the largest and the smallest batch, of the fastest rounds.
    best = {size: min(wall for wall, _ in walls) for size, walls in alone.items()}
    large, small = max(best), min(best)
    image = (best[large] - best[small]) / (large - small)
    fixed = max(0.0, best[large] - large * image)
    cores = os.cpu_count() or 1
    one = min(wall for wall, _ in group[1])
    first = min(cpu for _, cpu in group[1])
    size = 4 * network_cost(MODEL, CLASSES, (SIDE, SIDE))[0]
    rows: Table = []
    for world, found in group.items():
        # More processes than cores take turns.
        formula = (fixed + BATCH / world * image) * max(1.0, world / cores)
        passes = 2 * (world - 1)
        formula += passes * wire["latency"] + passes / world * size / wire["bandwidth"]
        walls, cpus = zip(*found, strict=True)
        speed = one / min(walls)
        rows.append(
            [
                str(world),
                str(BATCH // world),
                f"{1000 * min(walls):.0f} ({1000 * max(walls):.0f})",
                f"{1000 * formula:.0f}",
                f"{BATCH / min(walls):.0f}",
                f"{100 * speed / world:.0f} %",
                f"{100 * speed / min(world, cores):.0f} %",
                f"{1e3 * min(cpus) / BATCH:.2f} ({1e3 * max(cpus) / BATCH:.2f})",
                f"{100 * first / min(cpus):.0f} %",
            ]
        )
    lone = [
        [
            str(size),
            f"{1000 * min(w for w, _ in found):.0f}",
            f"{1000 * max(w for w, _ in found):.0f}",
        ]
        for size, found in alone.items()
    ]
    return rows, lone, {"fixed": fixed, "image": image}


def messages_here(folder: Path) -> tuple[Table, dict[str, float]]:
    """Allreduces among two processes, and the latency and bandwidth that the ring's formula has."""
    found = [max(each) for each in zip(*in_group(2, folder, "messages"), strict=True)]
    latency = found[0] / 2  # 2 (n - 1) messages, n = 2
    bandwidth = MESSAGES[-1] / (found[-1] - found[0])  # 2 (n - 1) / n = 1
    rows = [
        [f"{size:,}", f"{1000 * seconds:.2f}", f"{1000 * (2 * latency + size / bandwidth):.2f}"]
        for size, seconds in zip(MESSAGES, found, strict=True)
    ]
    return rows, {"latency": latency, "bandwidth": bandwidth}


def reads_here(folder: Path) -> dict[str, float]:
    """Bytes a second of writing a shard, of reading it from the disk and from memory; decoding."""
    path, rows = folder / "shard.arrow", SHARD_BYTES // 2000
    columns = {"logits": torch.zeros(rows, 1000, dtype=torch.float16)}
    started = time.perf_counter()
    arrow.write(path, columns)
    written = time.perf_counter() - started
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    arrow.page_in(path)
    cold = time.perf_counter() - started
    warm, _ = timed(lambda: arrow.page_in(path), 3)
    checked, _ = timed(lambda: arrow.file_checksum(path), 3)
    size = path.stat().st_size
    path.unlink()
    pictures = [photograph(number, 375, 500) for number in range(4)]
    decode, _ = timed(lambda: [open_image(data, "x").pixels() for data in pictures], 10)
    values = {"written": written, "cold": cold, "warm": warm, "checked": checked}
    return {name: size / seconds for name, seconds in values.items()} | {"decode": decode / 4}


def checkpoint_here(folder: Path) -> float:
    """Seconds of an epoch's end: a checkpoint of resnet20 with momentum."""
    network = models.build(MODEL, CLASSES)
    state = {"model": network.state_dict(), "momentum": network.state_dict(), "epoch": 0}
    checkpoints = Checkpoints(folder)
    return timed(lambda: checkpoints.record(lambda: state, last=True), 10)[0]


def reports_here(folder: Path) -> float:
    """CPU seconds of Ray Tune's driver for one report of a trial."""
    from ray import tune

    from raykd.config.scale import Scale
    from raykd.launch.cluster import connected

    def trial(config: dict[str, Any]) -> None:
        for number in range(config["reports"]):
            tune.report({"loss": 0.1, "top1": 50.0, "epoch": number})

    def driver(reports: int) -> float:
        started = time.process_time()
        run = tune.RunConfig(name=f"r{reports}", storage_path=str(folder), verbose=0)
        tune.Tuner(trial, param_space={"reports": reports}, run_config=run).fit()
        return time.process_time() - started

    with connected(Scale(address="local"), lambda text: None):
        driver(1)
        few, many = driver(10), driver(510)
    return max(0.0, many - few) / 500


@functools.lru_cache(maxsize=64)
def network_cost(model: str, classes: int, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters, and FLOPs of a forward of one image of `size` (H, W), from sizes alone."""
    network = unallocated(lambda: models.build(model, classes)).eval().to("meta")
    with torch.device("meta"), torch.no_grad(), flop_counter(model) as counter:
        network(torch.zeros(1, 3, *size))
    return parameter_count(network), counter.get_total_flops()


def imagenet(
    cluster: Cluster, batch: int, decode: float, *, local: bool, row: int = _DENSE
) -> Work:
    """An epoch of resnet18 from a cache of resnet34's logits, of `row` bytes an image.

    `local`: the images lie on the nodes' own disks.
    """
    parameters, flops = network_cost("torchvision/resnet18", 1000, (224, 224))
    return Work(
        images=IMAGES,
        epochs=1,
        batch=batch,
        image_seconds=3 * flops / cluster.operations,
        parameter_bytes=4 * parameters,
        view_bytes=IMAGES * row,
        encoded_bytes=0 if local else IMAGES * ENCODED,
        decode_seconds=decode,
    )


def predicted(
    cluster: Cluster, decode: float, batch: Callable[[int], int], *, local: bool, row: int = _DENSE
) -> Table:
    """A line per number of GPUs: the parts of a step in ms, images a second, efficiency, limit."""
    rows, base = [], None
    for gpus in GPUS:
        machines = cluster.model_copy(update={"nodes": -(-gpus // cluster.gpus)})
        work = imagenet(machines, batch(gpus), decode, local=local, row=row)
        step = scaling.step(work, machines, gpus)
        each = work.batch / step.seconds / gpus
        base = base or each
        parts = (step.compute, step.allreduce, step.decoding, step.storage, step.network)
        milliseconds = [f"{1000 * part:.1f}" for part in parts]
        ends = [f"{each * gpus:,.0f}", f"{100 * each / base:.0f} %", step.limit]
        rows.append([str(gpus), f"{work.batch:,}", *milliseconds, *ends])
    return rows


def students(cluster: Cluster, decode: float) -> Table:
    """A sweep's students, one GPU each with a batch of 256: what the head node and storage do."""
    rows = []
    for gpus in GPUS:
        machines = cluster.model_copy(update={"nodes": -(-gpus // cluster.gpus)})
        work = imagenet(machines, EACH, decode, local=True)
        step = scaling.step(work, machines, 1, gpus)
        epoch = work.steps() * step.seconds
        load = scaling.head_load(machines, gpus, 1, epoch)
        # The same sweep of small students, whose epoch takes a second: CIFAR on such a GPU.
        small = scaling.head_load(machines, gpus, 1, 1.0)
        rows.append([str(gpus), f"{epoch:.0f}", step.limit, f"{load:.4f}", f"{small:.2f}"])
    return rows


def markdown(head: Sequence[str], rows: Table) -> str:
    """A table of the page."""
    lines = [[*head], ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PARTS = ("compute", "allreduce", "decoding", "storage", "network")
AHEAD = ("GPUs", "batch", *(f"{part} ms" for part in PARTS), "images/s", "efficiency", "limit")


def arithmetic(decode: float, report: float) -> dict[str, str]:
    """The page's predicted tables, by name."""
    given = read_cluster(MACHINES)
    cluster = given.model_copy(update={"report_ms": 1000 * report})
    slower = cluster.model_copy(update={"utilisation": given.utilisation / 2.5})
    weak, strong = (lambda gpus: EACH * gpus), (lambda gpus: WHOLE)
    tables = {
        "remote": predicted(cluster, decode, weak, local=False),
        "local": predicted(cluster, decode, weak, local=True),
        "decoded": predicted(cluster, 0.0, weak, local=True),
        "topk": predicted(cluster, 0.0, weak, local=True, row=_TOPK),
        "slower": predicted(slower, decode, weak, local=True),
        "strong": predicted(cluster, 0.0, strong, local=True),
    }
    found = {name: markdown(AHEAD, rows) for name, rows in tables.items()}
    head = ("students", "s per epoch", "limit", "head node busy", "busy, epochs of 1 s")
    return found | {"sweep": markdown(head, students(cluster, 0.0))}


def measured(
    ray: bool, rounds: int, worlds: Sequence[int]
) -> tuple[dict[str, str], dict[str, float]]:
    """The page's measured tables, by name, and the constants."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "group").mkdir()
        messages, wire = messages_here(folder / "group")
        group, alone, values = scaling_here(folder / "group", wire, rounds, worlds)
        values |= wire | reads_here(folder) | {"checkpoint": checkpoint_here(folder)}
        if ray:
            values["report"] = reports_here(folder)
    head = ("workers", "images each", "step ms, best (worst)", "by the formula", "images/s")
    head += ("of n times one",)
    head += ("of the cores", "CPU ms per image, best (worst)", "CPU of one worker's")
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    units = {"fixed": 1e3, "image": 1e3, "latency": 1e3, "decode": 1e3, "checkpoint": 1e3}
    units |= {"report": 1e3}
    constants = [
        [name, f"{value * units[name]:.3f} ms" if name in units else f"{value / 1e9:.2f} GB/s"]
        for name, value in values.items()
    ]
    many = f"{rounds} rounds" if rounds > 1 else "one round"
    when = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {load} at the end, {many}"
    return {
        "workers": f"{when}\n\n{markdown(head, group)}",
        "alone": markdown(("images", "step ms, best", "worst"), alone),
        "messages": markdown(("bytes", "ms", "by the formula"), messages),
        "constants": markdown(("what", "value"), constants),
    }, values


def put(page: Path, tables: dict[str, str]) -> None:
    """Replace the tables of a page, between its marks."""
    text = page.read_text()
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{page}: expected one table <!-- {name} -->, found {count}")
    page.write_text(text)


@click.command()
@click.option("--measure/--no-measure", default=True, help="Whether to time this machine.")
@click.option("--ray/--no-ray", default=True, help="Whether to start Ray, to time its reports.")
@click.option("--rounds", default=3, show_default=True, help="Of steps, in turns.")
@click.option("--page", type=click.Path(path_type=Path), help="Where the tables belong.")
@click.option("--quick", is_flag=True, help="One round of up to two workers, without Ray.")
def main(measure: bool, ray: bool, rounds: int, page: Path | None, quick: bool) -> None:
    """See the top of the file."""
    if quick:
        ray, rounds = False, 1
    worlds = QUICK_WORLDS if quick else WORLDS
    tables, values = measured(ray, rounds, worlds) if measure else ({}, {})
    tables |= arithmetic(values.get("decode", DECODE), values.get("report", REPORT))
    for name, table in tables.items():
        click.echo(f"{name}\n{table}\n")
    if page is not None:
        put(page, tables)


if __name__ == "__main__":
    main()
