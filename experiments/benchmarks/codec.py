"""Size, time and error of each codec, relative to the dense codec and the live teacher.

    python -m experiments.benchmarks.codec [--k K ...] [--pairs N] [--markdown]
    python -m experiments.benchmarks.codec --data cifar10 --path FOLDER --model resnet20 \
        --epochs 4 --limit 20000

A real teacher, trained here unless the store has it, answers for training images; its outputs
pass through every codec and are compared with what it said, in float64. The student is the same
network after its first epoch. The last table has random logits of 1000 classes, for which only
bytes and speed mean anything. Speeds are CPU time over dense's in the same run.

Shapes: B batch, C classes.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import torch
from torch import Tensor

from experiments.benchmarks.measure import cpu_seconds, interleaved
from raykd.cli.shared import print_rows
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.text_table import markdown as as_markdown
from raykd.core.types import Batch, Look, Outputs, Signal
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import epoch_order
from raykd.methods import METHODS, Method
from raykd.methods.base import match_classes
from raykd.methods.kd import KD
from raykd.methods.skd import SKD
from raykd.models.staged import Staged, measure
from raykd.outputs.codecs import Codec, Dense, Int8, TopK
from raykd.outputs.codecs.topk import TAILS
from raykd.outputs.manifest import GRAIN, Manifest, Part, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.recipes import OutputsRun, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.training.inputs import live_teacher
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import ShardMaker, local_host, train

SIGNALS = Signal.LOGITS | Signal.EMBEDDING
MANY = 1000  # classes of the synthetic logits
TEMPERATURES = (1.0, 2.0, 4.0)
Row = dict[str, Any]


@click.command()
@click.option("--data", default="digits", show_default=True, help="A dataset's name.")
@click.option("--path", type=click.Path(path_type=Path), help="Its files; else its own download.")
@click.option("--model", default="resnet8", show_default=True, help="The teacher.")
@click.option("--epochs", default=6, show_default=True, help="Of the teacher, 2 or more.")
@click.option("--limit", type=int, help="Training images of the teacher; all if not given.")
@click.option("--rows", default=8192, show_default=True, help="Images that it answers for.")
@click.option("--k", "kept", multiple=True, type=int, help="Of topk: 3 and 5 if none is given.")
@click.option("--store", type=click.Path(path_type=Path), help="Keeps the teacher.")
@click.option("--pairs", default=7, show_default=True, help="Rounds of each measurement.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write them there.")
@click.option("--quick", is_flag=True, help="Few images and epochs: the same code in seconds.")
def main(
    data: str,
    path: Path | None,
    model: str,
    epochs: int,
    limit: int | None,
    rows: int,
    kept: tuple[int, ...],
    store: Path | None,
    pairs: int,
    markdown: bool,
    target: Path | None,
    quick: bool,
) -> None:
    """Print the tables."""
    many_rows = 20_000
    if quick:
        epochs, limit, rows, pairs, many_rows = 2, 320, 1024, 1, 2000
    torch.set_num_threads(1)
    keep_freed_memory()
    counts = kept or (3, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = _recipe(Store(store or folder / "store"), data, path, model, epochs, limit)
        real = Real(Store(store or folder / "store"), run, rows, folder, counts)
        tables = {
            f"{data}, {len(real.rows)} images, {real.told}": real.targets(),
            f"relative error of the losses, mean and deviation over {rows // GRAIN} batches": (
                real.losses()
            ),
            f"{data}: bytes and speed over dense's, {pairs} rounds": costs(
                real.columns, real.logits, folder / "a", pairs
            ),
        }
        logits = 5 * torch.randn(many_rows, MANY, generator=torch.Generator().manual_seed(0))
        many = {
            _called(codec): (codec, _columns(Outputs(logits), codec, Signal.LOGITS))
            for codec in codecs((10, 100))
        }
        title = f"SYNTHETIC logits 5 N(0, 1), {len(logits)} x {MANY} classes: bytes and speed"
        tables[f"{title} over dense's"] = costs(many, logits, folder / "b", pairs)
    for title, table in tables.items():
        if markdown:
            click.echo(f"\n{title}\n\n{as_markdown(table)}")
        else:
            click.echo(title)
            print_rows(table)
    if target is not None:
        target.write_text(json.dumps(tables, indent=2) + "\n")


def codecs(counts: Sequence[int], tails: Sequence[Any] = ("uniform",)) -> Iterator[Codec]:
    """The codecs that are compared: dense first."""
    yield Dense()
    yield Int8()
    for k in counts:
        for tail in tails:
            yield TopK(k=k, tail=tail)


class Real:
    """A teacher's outputs for training images in two views, and those of a student."""

    def __init__(
        self, store: Store, run: StudentRun, rows: int, folder: Path, counts: Sequence[int]
    ) -> None:
        teacher = run.teacher
        assert isinstance(teacher, TeacherRun)
        if not store.has(teacher):
            train(store, teacher, local_host(store, teacher))
        logits = run.outputs_at(0).model_copy(update={"embedding": True})
        self.counts = counts
        maker = ShardMaker(store, logits, torch.device("cpu"))
        self.rows = epoch_order(0, 0, len(maker.views.images))[:rows].sort().values
        self.classes = run.data.classes or 0
        self.teacher, self.live = _answers(store, logits, maker.views, self.rows)
        early = logits.model_copy(update={"anchor": 1})
        self.student, self.young = _answers(store, early, maker.views, self.rows)
        self.targets_of = maker.views.images.targets
        right = self.live[0].logits.argmax(1) == self.targets_of[self.rows]
        self.logits = self.live[0].logits
        self.told = (
            f"{logits.teacher.model} after {logits.anchor} epochs on {len(maker.views.images)} "
            f"images, right on {100 * right.double().mean():.1f} % of these, rows' deviation "
            f"{self.logits.std(1).mean():.2f}"
        )
        self.size = run.data.size or (32, 32)
        self.columns = {}
        self.caches: dict[str, OutputsCache] = {}
        for codec in codecs(counts):
            views = [_columns(answer, codec, SIGNALS) for answer in self.live]
            name = _called(codec)
            self.columns[name] = (codec, _columns(self.live[0], codec, Signal.LOGITS))
            self.caches[name] = _cache(folder / f"codec-{name}", views, codec, self.classes)

    def taken(self, codec: Codec, rows: Tensor, view: int = 0) -> Outputs:
        """Outputs of a cache for some rows, by their indices (int64 [B])."""
        return self.caches[_called(codec)].take(rows, view, SIGNALS, codec)

    def targets(self) -> list[Row]:
        """Distance of each codec's targets from the teacher's, for refused codecs, too.

        L1: of the gradient of KD by a student's logits, over T: at most 2. The divergence of a
        ghost is between k + 1 classes.
        """
        places, table = torch.arange(len(self.rows)), []
        for codec in codecs(self.counts, TAILS):
            found = _double(self.taken(codec, places))
            live, student = _double(self.live[0]), self.young[0].logits.double()
            row: Row = {"codec": _called(codec, with_tail=True)}
            for temperature in TEMPERATURES:
                same = match_classes(live, found).logits if found.kept is not None else live.logits
                kl = _divergence(same, found.logits, temperature).mean().item()
                apart = _gradient(student, live, temperature) - _gradient(
                    student, found, temperature
                )
                row[f"KL, T = {temperature:g}"] = f"{kl:.1e}" if kl < 100 else "(diverges)"
                row[f"L1, T = {temperature:g}"] = f"{apart.abs().sum(1).mean():.1e}"
            for temperature in (1.0, 4.0):
                method = SKD(temperature=temperature)
                if found.kept is None:
                    error = self._errors(method, codec)
                    row[f"SKD, T = {temperature:g}"] = f"{statistics.fmean(error):.1e}"
                else:
                    row[f"SKD, T = {temperature:g}"] = ""
            table.append(row)
        return table

    def losses(self) -> list[Row]:
        """Each method's loss under each codec that it accepts, over the live teacher's."""
        table = []
        for name, kind in METHODS.items():
            method = kind(name=name)
            if not method.needs() or (method.needs() | method.student_needs()) & ~SIGNALS:
                continue
            ways = {"": method}
            cooler = method.model_copy(update={"temperature": 1.0})
            few = [TopK(k=3, tail=tail) for tail in TAILS]
            if not any(c.serves(method) for c in few) and any(c.serves(cooler) for c in few):
                ways[", T = 1"] = cooler
            for suffix, way in ways.items():
                row: Row = {"method": name + suffix}
                for codec in codecs(self.counts, TAILS):
                    cell = ""
                    if codec.serves(way):
                        error = self._errors(way, codec)
                        cell = f"{statistics.fmean(error):.1e} +- {_deviation(error):.0e}"
                    row[_called(codec, with_tail=True)] = cell
                table.append(row)
        return table

    def _errors(self, method: Method, codec: Codec) -> list[float]:
        """|loss / live loss - 1| in each of the batches."""
        shapes = measure(self.student, self.size), measure(self.teacher, self.size)
        torch.manual_seed(0)
        helpers = method.helpers(*shapes, self.targets_of)
        if method.needs_calibration(helpers):
            method.calibrate(helpers, [self.live[0]])
        errors = []
        for places in torch.arange(len(self.rows)).split(GRAIN):
            if len(places) < GRAIN:
                continue
            batch = self._batch(places)
            mine = _seen([o.rows(_keep(places)) for o in self.young])
            live = _seen([o.rows(_keep(places)) for o in self.live])
            found = _seen([self.taken(codec, places), self.taken(codec, places, 1)])
            state = {k: v.clone() for k, v in helpers.state_dict().items()}
            values = []
            for teacher in (live, found):
                helpers.load_state_dict(state)
                parts = method.losses(match_classes(mine, teacher), teacher, batch, helpers)
                values.append(torch.stack([*parts.values()]).sum().detach().item())
            errors.append(abs(values[1] / values[0] - 1))
        return errors

    def _batch(self, places: Tensor) -> Batch:
        ids = self.rows[places]
        plain = Batch(torch.empty(0), self.targets_of[ids], ids, 0, 0)
        looks: dict[Look, Batch] = {"strong": plain}
        return Batch(torch.empty(0), self.targets_of[ids], ids, 0, 0, looks)


def costs(
    encoded: Mapping[str, tuple[Codec, dict[str, Tensor]]],
    logits: Tensor,
    folder: Path,
    pairs: int,
) -> list[Row]:
    """Bytes of a row, and rates of look-ups and of encoding over dense's."""
    count, classes = logits.shape
    order = epoch_order(0, 0, count)
    batches = order[: count // GRAIN * GRAIN].view(-1, GRAIN)
    repeats = max(1, 300_000 // count)
    table, takes, encodes = [], {}, {}
    for name, (codec, columns) in encoded.items():
        cache = _cache(folder / name, [columns], codec, classes)
        file = folder / name / next(iter(cache.manifest.shards)).name
        row: Row = {"codec": name, "bytes a row": f"{_bytes(columns) / count:.2f}"}
        row["in the file"] = f"{file.stat().st_size / count:.2f}"
        for how in ("lz4", "zstd"):
            row[how] = f"{_compressed(columns, how) / count:.2f}"
        table.append(row)
        for tail, reading in codec.readings().items():
            takes[f"{name}, {tail}" if tail else name] = _reading(cache, batches, reading, repeats)
        encodes[name] = _writing(logits, codec)
    read, written = interleaved(takes, pairs), interleaved(encodes, pairs)
    for row in table:
        own = {key: values for key, values in read.items() if key.split(",")[0] == row["codec"]}
        for key, values in own.items():
            tail = key.partition(", ")[2] or "uniform"
            rate = batches.numel() * repeats / statistics.median(values) / 1e6
            row[f"read, {tail}"] = f"{_ratio(read['dense'], values)} ({rate:.2f} M/s)"
        for tail in TAILS:
            row.setdefault(f"read, {tail}", "")
        values = written[row["codec"]]
        rate = count / statistics.median(values) / 1e6
        row["encode"] = f"{_ratio(written['dense'], values)} ({rate:.2f} M/s)"
    return table


def _ratio(base: Sequence[float], ours: Sequence[float]) -> str:
    ratios = [b / a for a, b in zip(ours, base, strict=True)]
    return f"{statistics.fmean(ratios):.2f} +- {_deviation(ratios):.2f}"


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN of a single value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def _reading(
    cache: OutputsCache, batches: Tensor, codec: Codec, repeats: int
) -> Callable[[], float]:
    def work() -> None:
        for _ in range(repeats):
            for ids in batches:
                cache.take(ids, 0, codec=codec)

    return lambda: cpu_seconds(work)


def _writing(logits: Tensor, codec: Codec) -> Callable[[], float]:
    def work() -> None:
        for rows in logits.split(GRAIN):
            codec.encode(Outputs(rows), Signal.LOGITS)

    return lambda: cpu_seconds(work)


def _recipe(
    store: Store, data: str, path: Path | None, model: str, epochs: int, limit: int | None
) -> StudentRun:
    """A student of the teacher that is asked for; only the teacher is trained."""
    augment = "pad: 1" if data == "digits" else "pad: 4, flip: true"
    text = f"""
    data: {{path: {json.dumps(str(path)) if path else "null"}}}
    run:
      model: {model}
      data: {{name: {data}, limit: {limit or "null"}, augment: {{{augment}}}}}
      teacher:
        model: {model}
        save_every: 1
        optim: {{epochs: {epochs}, batch: 64, lr: 0.1, schedule: cosine, warmup_epochs: 1}}
      method: kd
    """
    return resolve(parse(text, "benchmarks.codec"), store).students()[0]


def _answers(
    store: Store, run: OutputsRun, views: Views, rows: Tensor
) -> tuple[Staged, tuple[Outputs, Outputs]]:
    """A network, and what it says of the rows in views 0 and 1."""
    teacher = live_teacher(store, run, torch.device("cpu"), SIGNALS)
    answers = []
    for view in (0, 1):
        parts = [teacher(batch) for batch in views.runs(rows, GRAIN, view)]
        logits = torch.cat([part.logits for part in parts])
        answers.append(Outputs(logits, embedding=torch.cat([part.embedding for part in parts])))
    return teacher.network, (answers[0], answers[1])


def _columns(answer: Outputs, codec: Codec, signals: Signal) -> dict[str, Tensor]:
    """All rows through a codec, in the batches in which a build encodes."""
    every = torch.arange(len(answer.logits)).split(GRAIN)
    parts = [codec.encode(answer.rows(_keep(rows)), signals) for rows in every]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _cache(
    folder: Path, views: Sequence[dict[str, Tensor]], codec: Codec, classes: int
) -> OutputsCache:
    folder.mkdir(parents=True)
    count = len(next(iter(views[0].values())))
    shards = (
        write_shard(folder, Part(view, 0, count), columns) for view, columns in enumerate(views)
    )
    return OutputsCache(
        folder, Manifest(codec.recipe() | {"data": {"classes": classes}}, "", count, tuple(shards))
    )


def _keep(rows: Tensor) -> dict[str, Tensor]:
    return {"logits": rows, "embedding": rows}


def _seen(views: Sequence[Outputs]) -> Outputs:
    """The outputs for view 0, with those for view 1 as the strongly augmented look."""
    return views[0].with_looks({"given": views[0], "strong": views[1]})


def _double(outputs: Outputs) -> Outputs:
    return outputs.replace(logits=outputs.logits.double())


def _divergence(live: Tensor, found: Tensor, temperature: float) -> Tensor:
    """KL(live || found) of each row of logits [B, C] in nats: [B]."""
    p, q = (logits / temperature for logits in (live, found))
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def _gradient(student: Tensor, teacher: Outputs, temperature: float) -> Tensor:
    """The gradient of KD's loss of each row by the student's logits [B, C], over T."""
    leaf = student.clone().requires_grad_()
    mine = match_classes(Outputs(leaf), teacher)
    batch = Batch(torch.empty(0), torch.empty(0), torch.empty(0), 0, 0)
    method = KD(temperature=temperature, weight=1.0)
    (loss,) = method.losses(mine, teacher, batch, torch.nn.ModuleDict()).values()
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad * len(leaf) / temperature


def _bytes(columns: Mapping[str, Tensor]) -> int:
    return sum(column.nbytes for column in columns.values())


def _compressed(columns: Mapping[str, Tensor], how: str) -> int:
    """Bytes of the columns, each compressed by itself."""
    codec = pa.Codec(how)
    raw = (column.contiguous().numpy().tobytes() for column in columns.values())
    return sum(len(codec.compress(data, asbytes=True)) for data in raw)


def _called(codec: Codec, *, with_tail: bool = False) -> str:
    return f"{codec.label}, {codec.tail}" if with_tail and isinstance(codec, TopK) else codec.label


if __name__ == "__main__":
    main()
