"""Throughput of training and image loading, relative to what the machine can do.

    python -m experiments.benchmarks.gpu [--json PATH] [--pairs N] [--quick] [--path FOLDER]
                                    [--only steps|precompute|loader] [--decoders N ...]

Runs on a GPU where there is one, and on one core of a CPU elsewhere; needs no Ray. Steps are those
of the project's own learner, losses, cache, live teacher and optimiser. Each number is the median
over rounds in which everything it is compared with had its turn; ratios are taken round by round.
Seconds are CPU time on a CPU, and wall clock between two waits for the device on a GPU. What is
printed is Markdown.

Shapes: N images, B batch, C classes, H, W pixels.
"""

import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from experiments.benchmarks.measure import Side, interleaved
from experiments.benchmarks.photographs import photographs
from raykd import models
from raykd.core.types import Batch, Outputs, Signal
from raykd.data.dataset import Images, open_images, read
from raykd.data.loading.decode_workers import Decoder
from raykd.data.loading.loader import Views
from raykd.data.loading.raw_batches import FrameRequest
from raykd.data.recipe import Data, ResolvedData, Stream
from raykd.data.sources.byte_ranges import Encoded
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.colour import Colour
from raykd.data.transforms.crop import Crop
from raykd.data.transforms.strong import Strong
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.models import Staged
from raykd.outputs.codecs import Dense
from raykd.outputs.manifest import Manifest, Part, write_manifest
from raykd.outputs.reader import OutputsCache
from raykd.outputs.shard_writer import compute_shard
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.teachers.source import CachedTeacher, LiveTeacher, Source
from raykd.training.compiled import Mode
from raykd.training.learner import Learner
from raykd.training.memory import keep_freed_memory
from raykd.training.optim import build_optimiser
from raykd.training.result import hardware
from raykd.training.runs import default_device

TRAINING = Augment(crop=Crop(), flip=True)  # ImageNet's
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on images of some size."""

    teacher: str
    student: str
    side: int  # height and width of an image, in pixels
    classes: int
    batch: int
    steps: int  # timed together

    def __str__(self) -> str:
        teacher, student = (name.removeprefix("torchvision/") for name in self.networks())
        return f"{teacher} -> {student}, {self.side} px, batch {self.batch}"

    def networks(self) -> tuple[str, str]:
        """The teacher's and the student's name."""
        return self.teacher, self.student


LARGE = ("torchvision/resnet50", "torchvision/resnet18", 224, 1000)
SMALL = ("resnet56", "resnet20", 32, 100)


@dataclass(frozen=True)
class Size:
    """Amount of work in one round."""

    pairs: tuple[Pair, ...]
    photographs: int
    decoded: int  # images that each way of decoding takes in a round
    epoch: int  # images of an epoch through other processes, for each of them
    matrices: tuple[int, ...]  # rows and columns of matrix products, rising; the best is the peak
    products: int  # of the largest matrices in a round; of the others, for as many operations


QUICK = Size((Pair(*LARGE, 2, 1), Pair(*SMALL, 16, 2)), 32, 24, 128, (256, 512), 2)
FULL = Size((Pair(*LARGE, 16, 1), Pair(*SMALL, 64, 10)), 320, 256, 512, (512, 1024, 2048), 4)
GPU = Size(
    (Pair(*LARGE, 256, 10), Pair(*SMALL, 64, 100), Pair(*SMALL, 512, 50)),
    576,
    256,
    2048,
    (2048, 4096, 8192, 16384),
    4,
)


@dataclass(frozen=True)
class Speed:
    """Throughput of one subject."""

    where: str
    what: str
    rates: Sequence[float]  # units per second, one of each round
    unit: str = "images/s"
    flops: float | None = None  # operations per unit; a multiply-add is two
    peaks: Sequence[float] = ()  # FLOP/s of the best matrix product, one of each round

    def line(self) -> str:
        """A line of a Markdown table."""
        share = cost = ""
        if self.flops is not None:
            cost = f"{self.flops / 1e9:.3g}"
            shares = [self.flops * a / b for a, b in zip(self.rates, self.peaks, strict=True)]
            value = statistics.median(shares)
            share = f"{100 * value:.0f} %" if value <= 1 else ""  # what is outdone is no peak
        rate = f"{_three(statistics.median(self.rates))} {self.unit}"
        spread = f"{_three(min(self.rates))} to {_three(max(self.rates))}"
        return f"| {self.where} | {self.what} | {rate} | {spread} | {cost} | {share} |"


@dataclass(frozen=True)
class Ratio:
    """One speed over another, round by round."""

    name: str
    values: Sequence[float]
    goal: float | None = None  # at least
    note: str = ""

    def line(self) -> str:
        """A line of a Markdown table."""
        value = statistics.median(self.values)
        goal = "" if self.goal is None else f">= {self.goal:g}"
        reached = "" if self.goal is None else "yes" if value >= self.goal else "no"
        spread = f"{min(self.values):.3f} to {max(self.values):.3f}"
        return f"| {self.name} | {value:.3f} | {spread} | {goal} | {reached} | {self.note} |"


def _three(value: float) -> str:
    """A positive number with three digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Bench:
    """The device, the photographs, and what was measured."""

    def __init__(self, folder: Path, size: Size, rounds: int, path: Path | None) -> None:
        self.folder, self.size, self.rounds = folder, size, rounds
        self.device = default_device()
        self.speeds: list[Speed] = []
        self.ratios: list[Ratio] = []
        self.steps: dict[str, list[float]] = {}  # seconds of an image in label-only steps
        click.echo(f"{size.photographs} photographs ...", err=True)
        photographs(folder / "photographs", size.photographs, path)
        store, data = Store(folder / "store"), Data(name="folder", stream=Stream(), holdout=0.1)
        self.data = read(store, data, str(folder / "photographs"))
        self.train: Encoded = open_images(store, self.data)[0]  # pyright: ignore[reportAttributeAccessIssue]

    def seconds(self, work: Callable[[], object]) -> float:
        """CPU seconds of a call, or on a GPU those until it has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            work()
            torch.cuda.synchronize(self.device)
            return time.perf_counter() - started
        started = time.process_time()
        work()
        return time.process_time() - started

    def measured(self, sides: Mapping[str, Side]) -> dict[str, list[float]]:
        """Seconds of each side in each round."""
        return interleaved(sides, self.rounds)

    def streamed(self, **changes) -> Data:
        """The recipe of the photographs, shown in another way."""
        return self.data.model_copy(update={"augment": TRAINING} | changes)

    def decoded(self, side: int, classes: int) -> tuple[Images, Data]:
        """The photographs' centres as images in memory, with labels of `classes` classes."""
        shown = self.streamed(augment=Augment(), stream=Stream(size=side, resize=side))
        ids = np.arange(len(self.train))
        pixels = Decoder(self.train, FrameRequest((shown,)))[ids, 0].pixels["sample", 0]
        names = tuple(str(number) for number in range(classes))
        images = Images(pixels, torch.from_numpy(ids) % classes, names)
        own = {"stream": None, "classes": classes, "size": (side, side)}
        return images, shown.model_copy(update=own)


# Training steps


def steps_of(bench: Bench, pair: Pair, precision: str) -> None:
    """A student alone, with its teacher's cache and with its teacher, beside a matrix product."""
    where = f"{pair}, {precision}"
    click.echo(f"{where} ...", err=True)
    images, data = bench.decoded(pair.side, pair.classes)
    views = Views(images, data, device=bench.device)
    count = max(1, min(len(images) // pair.batch, 8))
    ids = torch.arange(count * pair.batch) % len(images)
    batches = list(views.batches(ids.view(count, pair.batch), 0, 0))
    live = LiveTeacher(
        _fitted(pair.teacher, pair.classes, batches[0], bench.device),
        Signal.LOGITS,
        bfloat16=precision == "bfloat16",
    )
    cached = CachedTeacher(_cache(bench.folder / f"cache {where}", views, live, bench.device))
    sources: dict[str, Source | None] = {
        "label only": None, "cached KD": cached, "live KD": live
    }  # fmt: skip
    steps = {what: _step(pair, precision, source, batches) for what, source in sources.items()}
    if bench.device.type == "cuda" and precision == "bfloat16":  # on a CPU it takes a minute each
        modes: dict[str, Mode] = {"compiled": True, "CUDA graphs": "reduce-overhead"}
        for name, mode in modes.items():
            steps[f"cached KD, {name}"] = _step(pair, precision, cached, batches, mode)
    products = {f"matrices of {side}": side for side in bench.size.matrices}
    sides: dict[str, Side] = {
        name: _product(bench, DTYPES[precision], side) for name, side in products.items()
    }
    flops: dict[str, float] = {}
    for what, step in steps.items():
        step()  # what a first step has to set up is not counted
        with FlopCounterMode(display=False) as counter:
            step()
        flops[what] = counter.get_total_flops() / pair.batch

        def some(step: Callable[[], None] = step) -> float:
            seconds = bench.seconds(lambda: [step() for _ in range(pair.steps)])
            return seconds / (pair.steps * pair.batch)

        sides[what] = some
    seconds = bench.measured(sides)
    each = {name: seconds.pop(name) for name in products}
    peaks = [1 / min(values) for values in zip(*each.values(), strict=True)]
    best = min(each, key=lambda name: statistics.median(each[name]))
    for what, values in seconds.items():
        rates = [1 / value for value in values]
        bench.speeds.append(Speed(where, what, rates, flops=flops[what], peaks=peaks))
    what = f"best matrix product, as a rule {best}"
    bench.speeds.append(Speed(where, what, [peak / 1e9 for peak in peaks], "GFLOP/s"))
    alone, ours, asked = (seconds[what] for what in sources)
    bench.ratios += [
        Ratio(f"cached KD over label only, {where}", _over(alone, ours), 0.97),
        Ratio(f"cached KD over live KD, {where}", _over(asked, ours)),
    ]
    for what in steps.keys() - sources.keys():
        bench.ratios.append(Ratio(f"{what}, over without, {where}", _over(ours, seconds[what])))
    bench.steps[where] = alone


def cached_steps(*, rehearse: bool) -> tuple[Callable[[], None], int]:
    """A step of the small pair's student from a cache in bfloat16, and its number of images."""
    device, side, classes = default_device(), SMALL[2], SMALL[3]
    pair = Pair(*SMALL, 8 if rehearse else 64, 1)
    pixels = torch.randint(256, (8 * pair.batch, side, side, 3), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % classes
    images = Images(pixels, labels, tuple(map(str, range(classes))))
    data = ResolvedData(
        name="folder",
        digest="0" * 20,
        classes=classes,
        size=(side, side),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    views = Views(images, data, device=device)
    batches = list(views.batches(torch.arange(len(pixels)).view(-1, pair.batch), 0, 0))
    logits = torch.randn(len(pixels), classes, generator=torch.Generator().manual_seed(0))
    columns = Dense().encode(Outputs(logits), Signal.LOGITS)
    columns = {name: column.to(device) for name, column in columns.items()}

    def cached(batch: Batch) -> Outputs:
        return Dense().decode(columns, batch.ids)

    return _step(pair, "bfloat16", cached, batches), pair.batch


def precompute(bench: Bench, pair: Pair) -> None:
    """A teacher's pass into the files of a cache, over its bare forward, in bfloat16."""
    where = f"precompute, {pair.teacher.removeprefix('torchvision/')}, {pair.side} px"
    click.echo(f"{where} ...", err=True)
    images, data = bench.decoded(pair.side, pair.classes)
    views = Views(images, data, device=bench.device)
    first = views.batch(torch.arange(min(len(images), pair.batch)), 0)
    network = _fitted(pair.teacher, pair.classes, first, bench.device)
    teacher = LiveTeacher(network, Signal.LOGITS, bfloat16=True)
    rows, numbers = len(images), iter(range(1 << 62))

    def bare() -> None:
        for _ in range(0, rows, len(first.ids)):
            teacher(first)

    def written() -> None:
        folder = bench.folder / f"{where} {next(numbers)}"
        folder.mkdir()
        compute_shard(folder, Part(0, 0, rows), views, teacher, teacher.supplies, Dense())

    passed = -(-rows // len(first.ids)) * len(first.ids)
    sides: dict[str, Side] = {
        "bare forward": lambda: bench.seconds(bare) / passed,
        "shards of a cache": lambda: bench.seconds(written) / rows,
    }
    seconds = bench.measured(sides)
    for what, values in seconds.items():
        bench.speeds.append(Speed(where, what, [1 / value for value in values]))
    forward, ours = seconds.values()
    bench.ratios.append(Ratio(f"{where}, over the bare forward", _over(forward, ours), 0.97))


def _over(base: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Our rate over another one, round by round, from the seconds of both."""
    return [a / b for a, b in zip(base, ours, strict=True)]


def _step(
    pair: Pair,
    precision: str,
    source: Source | None,
    batches: Sequence[Batch],
    compiled: Mode = False,
) -> Callable[[], None]:
    """One training step, to be called: the loop's, without its bookkeeping."""
    torch.manual_seed(0)
    device = batches[0].pixels.device
    method = LabelOnly() if source is None else KD()
    student = models.build(pair.student, pair.classes)
    # Ways of doing a step that change nothing of its meaning belong here, each as a variant beside
    # the plain one: in the learner that is made, and in the update below.
    autocast = precision == "bfloat16"
    learner = Learner(student, method, nn.ModuleDict(), autocast=autocast, compiled=compiled)
    learner = learner.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = build_optimiser(Optim(batch=pair.batch), learner.train())
    turn = iter(range(1 << 62))

    def step() -> None:
        batch = batches[next(turn) % len(batches)]
        outputs = source(batch) if source is not None else None
        losses, _ = learner(batch, outputs, 1.0)
        optimiser.zero_grad(set_to_none=True)
        torch.stack([*losses.values()]).sum().backward()
        optimiser.step()

    return step


def _fitted(name: str, classes: int, batch: Batch, device: torch.device) -> Staged:
    """A network of random weights whose batch norms fit its activations."""
    torch.manual_seed(1)
    network = models.build(name, classes)
    network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch, whole
    with torch.no_grad():
        network.train()(batch.pixels)
    return network


def _cache(folder: Path, views: Views, teacher: LiveTeacher, device: torch.device) -> OutputsCache:
    """The cache of a teacher's logits for one view of all images, open."""
    rows = len(views.images)
    recipe = {"data": {"classes": len(views.images.names)}}
    folder.mkdir()
    shard = compute_shard(folder, Part(0, 0, rows), views, teacher, teacher.supplies, Dense())
    write_manifest(folder, Manifest(recipe, "none", rows, (shard,)))
    return OutputsCache.open(folder, recipe, "none", [0], device)


def _product(bench: Bench, dtype: torch.dtype, side: int) -> Side:
    """Seconds of a FLOP in products of square matrices, with one thread.

    The best size is what the device can do at most in this precision, as measured beside the steps.
    torch lets convolutions of float32 run in TF32 on a GPU, so there the product does, too.
    """
    largest = bench.size.matrices[-1]
    times = round(bench.size.products * (largest / side) ** 3)
    left, right = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    lower = bench.device.type == "cuda" and dtype == torch.float32
    lower = lower and torch.backends.cudnn.allow_tf32

    def work() -> float:
        before = torch.get_float32_matmul_precision()
        if lower:
            torch.set_float32_matmul_precision("high")
        seconds = bench.seconds(lambda: [left @ right for _ in range(times)])
        torch.set_float32_matmul_precision(before)
        return seconds / (times * 2 * side**3)

    return work


# Images


def decoding(bench: Bench) -> None:
    """Ways of decoding photographs and making frames of them, an image at a time, on one core."""
    where = "decoding, one core"
    click.echo(f"{where} ...", err=True)
    count = min(bench.size.decoded, len(bench.train))
    encoded = [bench.train.ranges.read(row) for row in range(count)]
    flat = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    ids, rounds = torch.arange(count), iter(range(1 << 62))
    rgb = torchvision.io.ImageReadMode.RGB
    field = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(bench.data.mean, bench.data.std),
        ]
    )

    def opened(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def frames(**changes) -> Callable[[], object]:
        decoder = Decoder(bench.train, FrameRequest((bench.streamed(**changes),)))
        return lambda: decoder[ids.numpy(), next(rounds)]

    def batches() -> Callable[[], object]:
        views = Views(bench.train, bench.streamed())
        return lambda: views.batch(ids, next(rounds))

    works: dict[str, Callable[[], object]] = {
        "simplejpeg, read and decode": lambda: [
            simplejpeg.decode_jpeg(bench.train.ranges.read(row), "RGB") for row in range(count)
        ],
        "simplejpeg, decode only": lambda: [simplejpeg.decode_jpeg(d, "RGB") for d in encoded],
        "torchvision.io, decode only": lambda: [
            torchvision.io.decode_jpeg(data, mode=rgb) for data in flat
        ],
        "Pillow, decode only": lambda: [np.asarray(opened(data)) for data in encoded],
        "frames: read, decode, crop, resize, flip": frames(),
        "frames, draft": frames(stream=Stream(draft=True)),
        "frames, colour": frames(augment=_with(colour=Colour(brightness=0.4, contrast=0.4))),
        "frames, RandAugment(2)": frames(augment=_with(strong=Strong(operations=2, hole=0.0))),
        "batches: frames, normalised": batches(),
        "field: Pillow, torchvision v1, normalised": lambda: default_collate(
            [field(opened(data)) for data in encoded]
        ),
    }
    sides: dict[str, Side] = {
        what: lambda work=work: _cpu_seconds(work) / count for what, work in works.items()
    }
    seconds = bench.measured(sides)
    for what, values in seconds.items():
        bench.speeds.append(Speed(where, what, [1 / value for value in values]))
    read_too, bare, _, pillow, plain, draft, *_, ours, theirs = seconds.values()
    bench.ratios += [
        Ratio("frames over the bare decoder, one core", _over(bare, plain), 0.9),
        Ratio("frames over reading and the bare decoder, one core", _over(read_too, plain)),
        Ratio("frames, draft, over the bare decoder", _over(bare, draft)),
        Ratio("batches over the field's pipeline", _over(theirs, ours), 1.5),
        Ratio("simplejpeg over Pillow", _over(pillow, bare)),
    ]
    for step, values in bench.steps.items():
        if bench.device.type == "cpu" and "224 px" in step:
            name = f"batches over label-only steps, {step}"
            bench.ratios.append(Ratio(name, _over(values, ours), note="one core each"))


def loading(bench: Bench, decoders: Sequence[int]) -> None:
    """Batches that other processes decode ahead, by the clock on the wall."""
    batch = 64
    for number in decoders:
        where = f"loading, {number} decoders, wall clock"
        click.echo(f"{where} ...", err=True)
        views = Views(bench.train, bench.streamed(), device=bench.device, decoders=number)
        rows = (torch.arange(number * bench.size.epoch) % len(bench.train)).view(-1, batch)
        seconds: list[float] = []
        for epoch in range(bench.rounds + 1):  # the first one starts the processes
            started = time.perf_counter()
            for _ in views.batches(rows, epoch, epoch):
                pass
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            seconds.append((time.perf_counter() - started) / rows.numel())
        bench.speeds.append(Speed(where, "Views.batches", [1 / value for value in seconds[1:]]))
        for step, values in bench.steps.items():
            if "224 px" in step and bench.device.type == "cuda":
                name = f"loading over label-only steps, {number} decoders, {step}"
                bench.ratios.append(Ratio(name, _over(values, seconds[1:]), note="wall clock"))


def in_memory(bench: Bench) -> None:
    """Augmented and normalised batches of decoded small images, where they are trained on."""
    pair = next(pair for pair in bench.size.pairs if pair.side == SMALL[2])
    images, data = bench.decoded(pair.side, pair.classes)
    shown = data.model_copy(update={"augment": Augment(pad=4, flip=True)})
    views, view = Views(images, shown, device=bench.device), iter(range(1 << 62))
    ids = torch.arange(pair.batch, device=bench.device) % len(images)
    many = 50

    def work() -> float:
        seconds = bench.seconds(lambda: [views.batch(ids, next(view)) for _ in range(many)])
        return seconds / (many * pair.batch)

    where = f"images in memory, {pair.side} px, batch {pair.batch}"
    seconds = bench.measured({"views": work})["views"]
    bench.speeds.append(Speed(where, "crop, flip, normalise", [1 / value for value in seconds]))
    for step, values in bench.steps.items():
        if step.startswith(str(pair)):
            name = f"images in memory over label-only steps, {step}"
            bench.ratios.append(Ratio(name, _over(values, seconds)))


def _with(**changes) -> Augment:
    return TRAINING.model_copy(update=changes)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process in one call, on machines with a GPU, too."""
    started = time.process_time()
    work()
    return time.process_time() - started


# The command


def _about(bench: Bench) -> str:
    """Machine, versions and settings of the measurement."""
    cuda, cores = bench.device.type == "cuda", os.cpu_count() or 1
    each = float(bench.train.ranges.length.double().mean()) / 1000
    text = (
        f"{hardware(bench.device)}; torch {torch.__version__}, Python {platform.python_version()}; "
        f"{'wall clock, synchronised' if cuda else 'CPU time of 1 thread'}; {bench.rounds} rounds, "
        f"their median and range; {len(bench.train)} photographs of {each:.0f} kB; channels last; "
        f"load average {os.getloadavg()[0]:.1f} on {cores} cores at the end."
    )
    if cuda:
        state = "on" if torch.backends.cudnn.allow_tf32 else "off"
        text += f" TF32 is {state} in convolutions of float32, and in the product beside them."
    return text


def _tables(bench: Bench) -> Iterator[str]:
    """The lines of two Markdown tables."""
    yield "| where | what | speed | rounds | GFLOP per image | of the best product |"
    yield "|---|---|---:|---:|---:|---:|"
    yield from (speed.line() for speed in bench.speeds)
    yield ""
    yield "| ratio of speeds | median | rounds | goal | reached | |"
    yield "|---|---:|---:|---:|---|---|"
    yield from (ratio.line() for ratio in bench.ratios)


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the numbers there.")
@click.option("--pairs", default=None, type=int, help="Rounds; 3 with --quick, else 5.")
@click.option("--quick", is_flag=True, help="Small batches, few images.")
@click.option("--path", type=click.Path(path_type=Path, exists=True), help="JPEG files to take.")
@click.option("--only", type=click.Choice(["steps", "precompute", "loader"]), help="That alone.")
@click.option("--side", type=int, help="Steps and teachers on images of that many pixels alone.")
@click.option("--precision", type=click.Choice([*DTYPES]), help="Steps in that one alone.")
@click.option("--decoders", multiple=True, default=(1, 2), help="Processes of a loader.")
def main(
    target: Path | None,
    pairs: int | None,
    quick: bool,
    path: Path | None,
    only: str | None,
    side: int | None,
    precision: str | None,
    decoders: tuple[int, ...],
) -> None:
    """Print speeds, their share of the device's peak, and ratios."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes started here
    keep_freed_memory()  # as every process of ours that trains
    size = QUICK if quick else GPU if default_device().type == "cuda" else FULL
    chosen_pairs = [pair for pair in size.pairs if side in (None, pair.side)]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), size, pairs or (3 if quick else 5), path)
        if only in (None, "steps"):
            for pair in chosen_pairs:
                for chosen in [precision] if precision else DTYPES:
                    steps_of(bench, pair, chosen)
        if only in (None, "precompute"):
            for pair in chosen_pairs[:2]:
                precompute(bench, pair)
        if only in (None, "loader"):
            in_memory(bench)
            decoding(bench)
            loading(bench, decoders)
        click.echo("\n".join([_about(bench), "", *_tables(bench)]))
        if target is not None:
            found = {
                "about": _about(bench),
                "speeds": [asdict(speed) for speed in bench.speeds],
                "ratios": [asdict(ratio) for ratio in bench.ratios],
            }
            target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
