"""Cost of each method in a training step, and of its loss relative to a plain implementation.

    python -m experiments.benchmarks.methods [--json PATH] [--pairs N] [--quick] [--device cpu|cuda]
        [--only TEXT ...]

Three tables: a step of every method, and of some in other settings, over one of cached KD; every
loss, forward and backward to the student's outputs, over that of `plain_losses`; and the memory of
those that could need much of it. Several teachers are one network that answers as all. Time is CPU
time, on cuda the clock's. Goals are shown, not enforced; the exit status is 0.

Shapes: B batch, K channels, H, W pixels, D embedding width.
"""

import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would log each of its starts

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.measure import (
    CLASSES,
    SIZE,
    Row,
    Side,
    compared,
    cpu_seconds,
    interleaved,
    put,
    show,
    untrained,
)
from experiments.benchmarks.plain_losses import PLAIN, Plain
from raykd.core.types import CACHEABLE, Batch, Look, Outputs, Signal
from raykd.methods import METHODS, PRELUDES
from raykd.methods.base import Method, value_at
from raykd.methods.ca_mkd import CAMKD
from raykd.methods.columns import modules_of
from raykd.methods.combine import Combine
from raykd.methods.crd import Memory
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.embed_distill import EmbedDistill
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.multi_head_kd import MultiHeadKD
from raykd.methods.nst import NST
from raykd.methods.panel_distillation import PanelDistillation
from raykd.methods.relational_kd import RelationalKD
from raykd.models import build, measure, parameter_count
from raykd.recipes import Optim
from raykd.teachers.source import LiveTeacher, PanelTeacher, Source, SourceByLook
from raykd.tracking.console import Terminal
from raykd.training.learner import Learner
from raykd.training.memory import keep_freed_memory
from raykd.training.optim import build_optimiser
from raykd.training.panel import of_panel

BATCH = 64
ROWS = 50_000  # rows of the training set, in the memory bank of CRD
EPOCH = 30  # after every warm-up
PAIRS = (("resnet20", "resnet8"), ("resnet32x4", "resnet8x4"))  # teacher and student
MAPS = ((64, 8), (128, 16))  # K and H of both networks, for NST beside the networks' own
EMBEDDINGS = ((64, 64), (64, 2048), (128, 64), (128, 2048))  # B and D, for relational KD
TEACHERS = 3  # of methods that weigh several
SETTINGS: dict[str, Method] = {  # beside every method as it is by default
    "ca_mkd, with features": CAMKD(feature_weight=50.0),
    "embed_distill, with scores": EmbedDistill(score_weight=1.0),
    "feature_distillation, queue: LightlyTrain's v1": FeatureDistillation(distance="queue"),
    "feature_distillation, angle: C-RADIOv4": FeatureDistillation(distance="angle"),
    "dense_distillation, mse: LightlyTrain's v2": DenseDistillation(distance="mse", blocks=2),
    "queue and gram_kl: LightlyTrain's v3": Combine(
        combine=(FeatureDistillation(distance="queue"), DenseDistillation(distance="gram_kl"))
    ),
    "cosine, mse and phi_s: RADIOv2.5": Combine(
        combine=(FeatureDistillation(), DenseDistillation(distance="mse", standardise="phi_s"))
    ),
    "dense_distillation, theia": DenseDistillation(distance="theia", standardise="channel"),
    "multi_head_kd, linear": MultiHeadKD(head="linear"),
    "panel_distillation, ladder: UNIC": PanelDistillation(projector="ladder"),
    "panel_distillation: C-RADIOv4": PanelDistillation(
        embedding_distance="angle", map_distance="mse", standardise="phi_s", drop=0.0
    ),
}
LONG = 0.05  # seconds of work that is measured once a pair
GOAL = 1.1  # time of raykd's loss over the plain one: 1, plus noise
EQUAL = 1e-5  # relative; two losses further apart are not the same formula
MIB = 1 << 20
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """Cost of a training step with one method."""

    networks: str
    method: str
    ratio: float  # over a step of cached KD, the median of the pairs
    lowest: float
    highest: float
    pairs: int
    teacher: str  # "cached", "live" or "none"
    seconds: float  # per step
    parameters: int  # in the helpers
    kept: int  # numbers in the helpers' buffers
    memory: int | None  # bytes of the loss at its peak beyond KD's; None: it is not apart


@dataclass(frozen=True)
class Work:
    """Losses, and what they are differentiated by."""

    losses: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor]

    def __call__(self) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """The losses, and the gradients of their sum."""
        losses = self.losses()
        return losses, torch.autograd.grad(losses, self.inputs, allow_unused=True)


@dataclass(frozen=True)
class Case:
    """One loss in two forms, and the plain one in float64 where it can be had."""

    name: str
    ours: Work
    plain: Work
    exact: Callable[[], Work] | None = None


@dataclass(frozen=True)
class Bench:
    """Device and repetitions of the measurements."""

    device: torch.device
    pairs: int
    least: float  # seconds of one side of a pair

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        if self.device.type == "cpu":
            return cpu_seconds(work)
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def measure(
        self, ours: Callable[[], object], base: Callable[[], object]
    ) -> tuple[list[float], list[float]]:
        """Seconds of one call of each, in interleaved pairs; of short work there are more."""
        longest = max(self.seconds(work) for work in (ours, base))
        if longest < LONG:  # the first call has the start of everything in it
            longest = max(self.seconds(work) for work in (ours, base))
        count = max(1, round(self.least / longest))
        pairs = self.pairs if longest > LONG else 3 * self.pairs

        def side(work: Callable[[], object]) -> Side:
            return lambda: self.seconds(lambda: [work() for _ in range(count)]) / count

        seconds = interleaved({"ours": side(ours), "base": side(base)}, pairs)
        return seconds["ours"], seconds["base"]

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that the work holds at a time, beyond what there was before."""
        work()
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
            work()
        assert watch.profiler is not None
        assert watch.profiler.kineto_results is not None
        events = [e for e in watch.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        # torch's stub does not have it (2.9).
        sizes = [event.nbytes() for event in events]  # pyright: ignore[reportAttributeAccessIssue]
        return int(np.cumsum(sizes).max(initial=0))


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the tables there.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of each measurement.")
@click.option("--quick", is_flag=True, help="One pair of networks, not the largest maps.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", multiple=True, help="Measure the steps of methods that have this in them.")
def main(target: Path | None, pairs: int, quick: bool, device: str, only: tuple[str, ...]) -> None:
    """Print the three tables; with --only that of steps alone."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process of ours that trains
    bench = Bench(torch.device(device), pairs, 0.01 if quick else 0.03)
    say = Terminal().say
    costs: list[Cost] = []
    losses: list[Row] = []
    memory: list[Row] = []
    every = dict.fromkeys((*METHODS, *PRELUDES)) | SETTINGS
    chosen = {n: m for n, m in every.items() if not only or any(text in n for text in only)}
    for names in PAIRS[:1] if quick else PAIRS:
        networks = Networks(names, bench.device)
        for name, method in chosen.items():
            say(f"{networks.title}: {name}")
            subject = Subject(method or name, networks)
            costs.append(cost(bench, name, subject, networks))
            if not only and name in PLAIN and names == PAIRS[0]:
                case = subject.case()
                losses.append(time_beside(bench, case))
                if name == "crd":
                    memory.append(memory_beside(bench, case))
    if only:
        put(_table(costs))
        _write(target, costs, losses, memory)
        return
    for case in sizes(bench.device, MAPS[:1] if quick else MAPS):
        say(case.name)
        losses.append(time_beside(bench, case))
        memory.append(memory_beside(bench, case))
    losses.append(drawing(bench))
    put(_table(costs))
    show("the losses, over their obvious form", losses, None)
    show("the losses' memory, over that of their obvious form", memory, None)
    _write(target, costs, losses, memory)


def _write(
    target: Path | None, costs: Sequence[Cost], losses: Sequence[Row], memory: Sequence[Row]
) -> None:
    """Write the tables as JSON where there is a `target`."""
    if target is not None:
        tables = {"steps": costs, "losses": losses, "memory": memory}
        plain = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        target.write_text(json.dumps(plain, indent=2) + "\n")


class Networks:
    """A teacher, the name of a student, and a student of cached KD to compare with."""

    def __init__(self, names: tuple[str, str], device: torch.device) -> None:
        self.device = device
        self.title = " -> ".join(names)
        self.teacher, self.student = _on(device, untrained(names[0])), names[1]
        self.kd = Subject("kd", self)


class Subject:
    """A method between two networks, with a batch and what answers for the teacher."""

    def __init__(self, method: Method | str, networks: Networks) -> None:
        torch.manual_seed(0)
        if isinstance(method, str):
            method = (METHODS if method in METHODS else PRELUDES)[method](name=method)
        self.method = method
        self.batch, self.needs = sample(self.method, networks.device), self.method.needs()
        student = _on(networks.device, build(networks.student, CLASSES))
        teachers = TEACHERS if method.panel else 1
        mine, one = (measure(network, (SIZE, SIZE)) for network in (student, networks.teacher))
        theirs = of_panel([one] * teachers)
        helpers = self.method.helpers(mine, theirs, torch.arange(ROWS) % CLASSES)
        self.learner = _on(networks.device, Learner(student, self.method, helpers))
        derived = self.method.derived()
        modules = _on(networks.device, modules_of(derived, one, CLASSES))
        live = LiveTeacher(networks.teacher, self.needs, derived=derived, modules=modules)
        self.live = PanelTeacher([live] * teachers, "none") if teachers > 1 else live
        self.teacher = SourceByLook(dict.fromkeys(self.method.looks().teacher, self.live))
        self.student = SourceByLook(dict.fromkeys(self.method.looks().student, self._seen))
        if self.method.needs_calibration(helpers):
            self.method.calibrate(helpers, [self.teacher(self.batch)])

    def source(self) -> str:
        """Source of the teacher's outputs: "live" or "cached"."""
        return "none" if not self.needs else "live" if self.needs & ~CACHEABLE else "cached"

    def step(self) -> Callable[[], None]:
        """One training step; what comes from a cache was read before."""
        optimiser = build_optimiser(Optim(lr=1e-6), self.learner)
        weight, live = value_at(self.method.label_weight, EPOCH), self.source() == "live"
        read = self.teacher(self.batch) if self.source() == "cached" else None

        def once() -> None:
            answers = self.teacher(self.batch) if live else read
            losses, _ = self.learner(self.batch, answers, weight)
            optimiser.zero_grad(set_to_none=True)
            torch.stack([*losses.values()]).sum().backward()
            optimiser.step()

        return once

    def losses(self, plain: Plain | None = None, dtype: torch.dtype = torch.float32) -> Work:
        """The method's losses, or its plain one, with helpers of their own.

        They start from what both networks said; where they are differentiated by the pixels,
        both networks run each time.
        """
        torch.manual_seed(1)  # for the noise on the outputs: equal in all forms
        method, batch, helpers = self.method, self.batch, copy.deepcopy(self.learner.helpers)
        inputs = [p for p in helpers.to(dtype).parameters() if p.requires_grad]
        said = None
        if Signal.PIXELS in self.needs:
            inputs += self.learner.student.parameters()
        else:
            student, teacher = (Fixed(who, dtype) for who in (self._seen, self.live))
            looks = method.looks()
            said = (
                SourceByLook(dict.fromkeys(looks.student, student))(batch),
                SourceByLook(dict.fromkeys(looks.teacher, teacher))(batch),
            )
            inputs += [value.requires_grad_() for value in student.values]

        def losses() -> Sequence[Tensor]:
            student, teacher = said or (self.student(batch), self.teacher(batch))
            if plain is not None:
                return [plain(method, student, teacher, batch, helpers)]
            return [*method.losses(student, teacher, batch, helpers).values()]

        return Work(losses, inputs)

    def case(self) -> Case:
        """The losses in both forms."""
        name, plain = self.method.name, PLAIN[self.method.name]
        return Case(
            name if Signal.PIXELS not in self.needs else f"{name}, with both networks",
            self.losses(),
            self.losses(plain),
            None if Signal.PIXELS in self.needs else lambda: self.losses(plain, torch.float64),
        )

    def _seen(self, batch: Batch) -> Outputs:
        """Outputs of the student for one look."""
        pixels = batch.pixels
        if Signal.PIXELS in self.needs:
            pixels = pixels.detach().requires_grad_()
        return self.learner.student.outputs(pixels, self.method.student_needs())


class Fixed:
    """A network's answers without their graph, in one dtype, spread apart; it keeps their tensors.

    An untrained network says almost the same of all samples, where a loss would be all rounding.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self.values: list[Tensor] = []

    def __call__(self, batch: Batch) -> Outputs:
        """The answer for one look."""
        return self._fixed(self.source(batch))

    def _fixed(self, said: Outputs) -> Outputs:
        """An answer, and that of each of several teachers, without the graph."""
        panel = tuple(self._fixed(one) for one in said.panel)
        classifier = vars(said).get("classifier")
        if classifier is not None:
            classifier = copy.deepcopy(classifier).to(self.dtype)
        logits = self._kept(said.logits, 5.0)
        maps = {name: self._kept(value) for name, value in said.features.items()}
        embedding = self._kept(said.embedding, 1.0) if said.has_embedding else None
        derived = None
        if said.has_derived:
            derived = {name: self._kept(value) for name, value in said.derived.items()}
        return Outputs(logits, maps, embedding, classifier=classifier, panel=panel, derived=derived)

    def _kept(self, value: Tensor, spread: float = 0.0) -> Tensor:
        value = value.detach()
        if spread:
            value = value + spread * torch.randn_like(value)
        self.values.append(value.to(self.dtype))
        return self.values[-1]


def sample(method: Method, device: torch.device) -> Batch:
    """Random pixels and labels, with every other look at them; mixed where the method mixes."""
    generator = torch.Generator().manual_seed(0)
    targets, weights = torch.randint(0, CLASSES, (BATCH,), generator=generator), None
    if method.mixing():
        weights = torch.rand(BATCH, generator=generator)
        own, partner = F.one_hot(targets, CLASSES), F.one_hot(targets.roll(1), CLASSES)
        targets = weights[:, None] * own + (1 - weights[:, None]) * partner
        weights = weights.to(device)

    def look(looks: dict[Look, Batch]) -> Batch:
        pixels = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        pixels = pixels.to(device, memory_format=torch.channels_last)
        ids = torch.arange(BATCH, device=device)
        return Batch(pixels, targets.to(device), ids, 0, EPOCH, looks, weights)

    names: tuple[Look, ...] = ("clean", "partner", "strong")
    return look({name: look({}) for name in names})


def sizes(device: torch.device, maps: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """NST and relational KD of random outputs whose sizes decide what they cost."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).relu().to(device)

    def case(name: str, method: Method, student: Outputs, teacher: Outputs, leaf: Tensor) -> Case:
        batch, none = Batch(leaf, leaf, leaf, 0, EPOCH), nn.ModuleDict()
        plain = PLAIN[method.name]
        return Case(
            name,
            Work(lambda: [*method.losses(student, teacher, batch, none).values()], [leaf]),
            Work(lambda: [plain(method, student, teacher, batch, none)], [leaf]),
        )

    for width, side in maps:
        mine, theirs = (
            random(BATCH, width, side, side).contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        mine.requires_grad_()
        known, given = (Outputs(random(BATCH, 1), {"stage1": value}) for value in (mine, theirs))
        yield case(f"nst, {BATCH} x {width} x {side} x {side}", NST(), known, given, mine)
    for rows, width in EMBEDDINGS:
        mine, theirs = random(rows, width).requires_grad_(), random(rows, width)
        known, given = (Outputs(random(rows, 1), embedding=value) for value in (mine, theirs))
        yield case(f"relational_kd, {rows} x {width}", RelationalKD(), known, given, mine)


def cost(bench: Bench, name: str, subject: Subject, networks: Networks) -> Cost:
    """A method's step beside one of cached KD."""
    ours, base = bench.measure(subject.step(), networks.kd.step())
    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    helpers = subject.learner.helpers
    memory = None
    if subject.needs and not subject.needs & (Signal.PIXELS | Signal.LIVE):  # these run networks
        memory = bench.peak(subject.losses()) - bench.peak(networks.kd.losses())
    return Cost(
        networks.title,
        name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(ratios),
        subject.source(),
        statistics.median(ours),
        parameter_count(helpers),
        sum(buffer.numel() for buffer in helpers.buffers()),
        memory,
    )


def time_beside(bench: Bench, case: Case) -> Row:
    """The time of our loss over the plain one, and how far the two are apart."""
    (ours, gradients), (plain, gradients_plain) = case.ours(), case.plain()
    total, expected = _total(ours), _total(plain)
    apart, gradients_apart = _relative(total, expected), _furthest(gradients, gradients_plain)
    more = f"losses differ by {apart:.1e}, gradients by {gradients_apart:.1e}"
    if apart > EQUAL and case.exact is not None:
        exact = _total(case.exact().losses())
        off, off_plain = _relative(total, exact), _relative(expected, exact)
        more += f"; from float64 ours by {off:.1e}, plain by {off_plain:.1e}"
    del ours, plain, gradients, gradients_plain
    seconds, seconds_plain = bench.measure(case.ours, case.plain)
    sides = ("ours", seconds), ("plain", seconds_plain)
    return compared(case.name, *sides, GOAL, "call", "lower", more)


def memory_beside(bench: Bench, case: Case) -> Row:
    """The peak memory of our loss over the plain one's."""
    ours, plain = bench.peak(case.ours), bench.peak(case.plain)
    note = f"ours: {ours / MIB:,.1f} MiB; plain: {plain / MIB:,.1f} MiB"
    return Row(case.name, ours / plain, GOAL, "lower", note)


def drawing(bench: Bench) -> Row:
    """CRD's negatives of one batch, by key, over numpy's choice for each sample."""
    count, targets = 16_384, torch.arange(ROWS) % CLASSES
    memory = _on(bench.device, Memory(targets, 1, 1.0, 0.5))
    others = [np.flatnonzero(targets.numpy() != label) for label in range(CLASSES)]
    ids = torch.arange(BATCH, device=bench.device)
    batch, chance = Batch(ids, ids, ids, 0, EPOCH), np.random.default_rng(0)

    def choice() -> Tensor:
        rows = [chance.choice(others[i % CLASSES], count, replace=False) for i in range(BATCH)]
        return torch.from_numpy(np.stack(rows)).to(bench.device)

    ours, plain = bench.measure(lambda: memory.sample_rows(batch, count, relaxed=False), choice)
    return compared(
        f"{count:,} negatives of {BATCH} samples, drawn from {ROWS:,} rows",
        ("Memory.drawn", ours),
        ("numpy's choice without replacement, sample by sample", plain),
        GOAL,
        "batch",
        "lower",
    )


def _on(device: torch.device, module: _Module) -> _Module:
    """The module on a device, in the layout in which everything is trained."""
    return module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of some losses, in float64."""
    return torch.stack([loss.detach().double() for loss in losses]).sum()


def _relative(ours: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - other).abs().max() / other.abs().max().clamp_min(1e-30))


def _furthest(ours: Sequence[Tensor | None], plain: Sequence[Tensor | None]) -> float:
    """The largest `_relative` difference of some gradients."""
    pairs = zip(ours, plain, strict=True)
    return max(_relative(a, b) for a, b in pairs if a is not None and b is not None)


def _table(costs: Sequence[Cost]) -> Table:
    """The steps' costs."""
    table = Table(title="a training step, over one of cached KD")
    for name in ("networks", "method"):
        table.add_column(name)
    for name in ("ratio", "pairs", "teacher", "a step", "parameters", "buffers", "memory"):
        table.add_column(name, justify="right")
    for row in costs:
        memory = "" if row.memory is None else f"{row.memory / MIB:+,.1f} MiB"
        table.add_row(
            row.networks,
            row.method,
            f"{row.ratio:.3f}",
            f"{row.pairs}, {row.lowest:.3f} to {row.highest:.3f}",
            row.teacher,
            f"{1e3 * row.seconds:.1f} ms",
            f"{row.parameters:,}",
            f"{row.kept:,}",
            memory,
        )
    return table


if __name__ == "__main__":
    main()
