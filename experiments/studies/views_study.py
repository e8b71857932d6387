"""Accuracy of a student by the number of cached views, at equal epochs.

    python -m experiments.studies.views_study --path FOLDER    # CIFAR-10, 90 minutes on one core
    python -m experiments.studies.views_study --tiny           # digits, a minute
    python -m experiments.studies.views_study --full --path FOLDER   # resnet56 to resnet20, a GPU

A cache of V views costs V passes of the teacher over the images, and a student of E epochs goes
through them E / V times. So few views are cheap, and show the student fewer different images. The
students here differ in V alone; `all` is a new view in every epoch, and `live` asks the teacher
about the same ones in every step. Prints top-1 after the last epoch, seed by seed against `all`,
and what teacher and students cost together, for one student and for a sweep of ten that share the
cache. The table (CSV and Markdown), a chart and the page of the students lie in `reports` of the
store, and the same command goes on where it was.

Shapes: V views, E epochs.
"""

import copy
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from raykd import report
from raykd.cli.shared import STORE, print_rows, speaking
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.core.text_table import markdown
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.launch.executor import execute
from raykd.outputs.manifest import Part
from raykd.recipes import StudentRun
from raykd.report.comparison import summarise
from raykd.report.svg import draw, look
from raykd.report.types import Summary
from raykd.storage.atomic import write_atomic
from raykd.storage.store import Store, read_json
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import read_metrics
from raykd.training import initial_state, inputs
from raykd.training.cache_verify import SPOT_CHECK, compare
from raykd.training.checkpointing import CHECKPOINT, RESULT, Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.loop import Sources, distil
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import ShardMaker, default_device

LABELS = "label_only"  # the reference without a teacher, with a new view in every epoch
SWEEP = 10  # students that share a cache
TIMED = 1024  # images of a timed epoch, or so
ROUNDS = 5  # the median counts
Arms = Mapping[str, Experiment]  # what is compared, by its name


@dataclass(frozen=True)
class Preset:
    """A recipe, and how much of it."""

    run: str
    models: str
    views: str
    epochs: int
    limit: int | None  # training images of the students; None: all
    seeds: int


SHORT = Preset(
    (
        Path(__file__).parents[1] / "recipes" / "cifar10.yaml"
    ).read_text(),  # whose teacher is the methods' table's
    models="resnet20:resnet8",
    views="1,2,4,8,16,all,live",
    epochs=32,
    limit=5000,
    seeds=3,
)
DIGITS = """
run:
  data: {name: digits, holdout: 0.33, augment: {pad: 1}}
  teacher:
    data: {name: digits, holdout: 0.33, augment: {pad: 1}}
    optim: {epochs: 8}
    save_every: 8
  optim: {batch: 50}
"""
TINY = Preset(DIGITS, "resnet8x4:resnet8", "1,2,4,all,live", epochs=48, limit=100, seeds=2)
# The CRD benchmark's schedule (Tian et al. 2020, arXiv 1910.10699), which 240 epochs stretch to.
CRD = """
run:
  data: {name: cifar10, augment: {pad: 4, flip: true}}
  teacher: {optim: {epochs: 240, milestones: [150, 180, 210]}, save_every: 240}
"""
FULL = Preset(
    CRD, "resnet56:resnet20", "1,2,4,8,16,32,64,all,live", epochs=240, limit=None, seeds=3
)


@click.command()
@click.option("--path", help="Where the images are; the data set's own download if not given.")
@click.option("--epochs", type=int, help="Of every student.")
@click.option("--limit", type=int, help="Training images of the students.")
@click.option("--views", help="Numbers, all, live; with commas between.")
@click.option("--seeds", type=int, help="How many.")
@click.option("--models", help="teacher:student")
@click.option("--method", default="kd", show_default=True, help="One that learns from a cache.")
@click.option("--tiny", is_flag=True, help="Digits; a minute on one core.")
@click.option("--full", is_flag=True, help="The CRD benchmark's recipe, for a GPU.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained, and read no images.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `raykd run`."
)
@STORE
@speaking
def main(
    path: str | None,
    tiny: bool,
    full: bool,
    dry_run: bool,
    method: str,
    overrides: tuple[str, ...],
    store: Path,
    **chosen: Any,
) -> None:
    """Train what is missing, print the table and write the reports."""
    if tiny and full:
        raise ConfigError("--tiny and --full: two recipes were asked for; give one of them")
    torch.set_num_threads(1)
    keep_freed_memory()
    terminal, artefacts = Terminal(), Store(store)
    preset = TINY if tiny else FULL if full else SHORT
    preset = replace(preset, **{key: value for key, value in chosen.items() if value is not None})
    name = "views_study-" + ("digits" if tiny else "full" if full else "cifar10")
    arms = planned(preset, name, method, path, overrides)
    if dry_run:
        print_rows(priced(arms))
        return
    first = next(iter(arms.values()))
    runs = [run for arm in arms.values() for run in arm.students()]
    # Seed by seed, so that a study that is stopped has every arm.
    runs.sort(key=lambda run: run.seed)
    experiment = resolve(replace(first, runs=tuple(runs)), artefacts, terminal.say)
    with terminal.showing():
        execute(experiment, artefacts, terminal)
    page = report.publish(report.gather(artefacts, experiment), artefacts)
    study = Study(
        artefacts, {name: resolve(arm, artefacts).students() for name, arm in arms.items()}
    )
    rows = [study.row(arm) for arm in study.arms]
    for suffix, text in (
        ("md", f"{markdown(rows)}\n\n{study.notes()}\n"),
        ("svg", study.chart()),
    ):
        write_atomic(page.with_name(f"{name}.{suffix}"), text.encode())
    with page.with_name(f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    hidden = ("hardware", "fingerprints")
    print_rows([{key: row[key] for key in row if key not in hidden} for row in rows])
    click.echo(study.notes())
    terminal.say(f"page: {page}; beside it {name}.csv, .md and .svg")


def planned(
    preset: Preset, name: str, method: str, path: str | None, overrides: tuple[str, ...]
) -> Arms:
    """Arms in order: numbers of views, `all`, `live`, and the labels alone."""
    teacher, _, student = preset.models.partition(":")
    tree = yaml.safe_load(preset.run)
    run = {**tree["run"], "model": student, "method": method}
    run["data"] |= {} if preset.limit is None else {"limit": preset.limit}
    run["teacher"] |= {"model": teacher}
    run["optim"] = run.get("optim", {}) | {"epochs": preset.epochs}
    names = [word.strip() for word in preset.views.split(",")]
    if not any(arm == "all" or arm.isdecimal() for arm in names):
        raise ConfigError("--views: nothing comes from a cache; add 'all' or a number")
    arms = {}
    for arm in [*dict.fromkeys(names), LABELS]:
        changes: dict[str, Any] = {"views": int(arm) if arm.isdecimal() else "all"}
        if arm == "live":
            changes["source"] = "live"
        elif arm == LABELS:
            changes["method"] = LABELS
        elif arm != "all" and not arm.isdecimal():
            raise ConfigError(f"--views: {arm!r} is none of a number, 'all' and 'live'")
        text = {
            "run": copy.deepcopy(run) | changes,
            "grid": {"run.seed": list(range(preset.seeds))},
            "data": {"path": path},
        }
        arms[arm] = parse(yaml.safe_dump(text), name, overrides)
        first = arms[arm].students()[0]
        if arm not in ("live", LABELS) and not first.cached():
            raise ConfigError(
                f"--method: {method!r} asks the teacher's network itself, so there are no views to "
                "cache; choose one that `raykd show methods` says learns from a cache"
            )
        most = first.model_copy(update={"views": "all"}).view_count()
        if arm.isdecimal() and int(arm) > most:
            raise ConfigError(
                f"--views: {preset.epochs} epochs show {most} different views, which are `all`; "
                f"leave {arm} out"
            )
    return arms


def priced(arms: Arms) -> list[dict[str, Any]]:
    """Students of each arm, and passes of its teacher over the images."""
    rows = []
    for name, arm in arms.items():
        run = arm.students()[0]
        rows.append(
            {
                "views": name,
                "students": len(arm.runs),
                "teacher": run.teacher.model if run.teacher else "",
                "student": run.model,
                "method": run.method.label,
                "epochs": run.optim.epochs,
                "passes of the teacher": passes(name, run),
                "one student": formula(name, run, 1),
                f"{SWEEP} students": formula(name, run, SWEEP),
            }
        )
    return rows


def passes(arm: str, run: StudentRun) -> int:
    """Passes of the teacher over the images for one student."""
    return 0 if arm == LABELS else run.optim.epochs if arm == "live" else run.view_count()


def formula(arm: str, run: StudentRun, students: int) -> str:
    """The cost of some students' epochs, in a student's and a teacher's seconds for one epoch."""
    shared = students if arm == "live" else 1
    count = passes(arm, run) * shared
    return f"student + teacher x {count} / {run.optim.epochs * students}"


@dataclass(frozen=True)
class Seconds:
    """Seconds of an epoch over all images: CPU time, or wall time on a GPU."""

    student: float  # steps from the cache
    live: float  # steps with the teacher asked in each
    labels: float  # steps without a teacher
    teacher: float  # drawing, forwards, encoding and writing of one view


class Watch:
    """Times an epoch of a student, and a pass of its teacher, on as many images as it takes."""

    def __init__(self, store: Store, run: StudentRun, folder: Path) -> None:
        self.store = store
        self.run = run
        self.device = default_device()
        self.folder = folder
        self.size = len(open_images(store, run.data)[0])
        self.rows = min(self.size, TIMED)
        # Of few images several epochs, or it would be the files' time; each shows another view.
        self.epochs = min(-(-TIMED // self.rows), run.view_count())

    def seconds(self, labels: StudentRun) -> Seconds:
        """All of them in turns, so that what else the machine does favours none."""
        live = self.run.model_copy(update={"source": "live"})
        sides = {
            "student": lambda: self._steps(self.run),
            "live": lambda: self._steps(live),
            "labels": lambda: self._steps(labels),
            "teacher": self._views,
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(ROUNDS + 1):
            for name in list(sides)[:: -1 if number % 2 else 1]:
                found[name].append(sides[name]())
        scale = self.size / self.rows / self.epochs
        # The first round does not count.
        return Seconds(
            **{name: scale * statistics.median(times[1:]) for name, times in found.items()}
        )

    def _steps(self, run: StudentRun) -> float:
        """Seconds of the loop itself, over the first images and without evaluation."""
        plain = {"schedule": "constant", "milestones": None, "warmup_epochs": 0}
        optim = run.optim.model_copy(update=plain | {"epochs": self.epochs})
        run = run.model_copy(update={"optim": optim, "views": self.epochs})
        host = LocalHost(Checkpoints(self.folder, float("inf")), self.device)
        train, _ = inputs.views(self.store, run, host)
        train = Views(train.images.take(torch.arange(self.rows)), train.data, train.looks)
        learner = initial_state.learner(self.store, run, host, train.images.targets)
        teacher_at = inputs.teachers(self.store, run, self.device)
        teacher_at(0)  # is loaded before
        return self._timed(lambda: distil(run, learner, Sources(teacher_at, train), host))

    def _views(self) -> float:
        """Seconds of views of the first images, as a cache is made."""
        maker = ShardMaker(self.store, self.run.outputs_at(0), self.device)
        maker.folder = self.folder
        parts = [Part(view, 0, self.rows) for view in range(self.epochs)]
        return self._timed(lambda: [maker.make(part) for part in parts])

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds of one call. What a GPU does it has done when the call returns."""
        clock = time.monotonic if self.device.type == "cuda" else time.process_time
        started = clock()
        work()
        seconds = clock() - started
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return seconds


class Study:
    """Finished students by what they were compared for, and what the table says of them."""

    def __init__(self, store: Store, arms: Mapping[str, Sequence[StudentRun]]) -> None:
        self.store = store
        self.arms = arms
        self.counts = {arm: runs[0].view_count() for arm, runs in arms.items()}
        cached = [arm for arm in arms if arm not in ("live", LABELS)]
        self.cached = sorted(cached, key=lambda arm: (self.counts[arm], arm))  # "all" comes last
        self.most = self.cached[-1]
        self.sample = arms[self.most][0]
        self.rows = len(open_images(store, self.sample.data)[0])
        with tempfile.TemporaryDirectory() as folder:
            self.seconds = Watch(store, self.sample, Path(folder)).seconds(arms[LABELS][0])

    def last(self, arm: str, key: str = "top1") -> list[float]:
        """A number after the last epoch, seed by seed."""
        return [read_json(self.store.path(run) / RESULT)["last"][key] for run in self.arms[arm]]

    def top1(self, arm: str) -> Summary:
        """The accuracy of an arm's students."""
        summary = summarise(self.last(arm))
        assert summary is not None, "an arm has a student for each seed"
        return summary

    def price(self, arm: str, students: int) -> float:
        """The seconds of some students and what they need of the teacher, over asking it live."""
        spent = students * self.students_seconds(arm) + self.teachers_seconds(arm)
        return spent / (students * self.seconds.live * self.sample.optim.epochs)

    def students_seconds(self, arm: str) -> float:
        """The steps of one student; those with a live teacher hold what it takes."""
        one = self.seconds
        epoch = one.live if arm == "live" else one.labels if arm == LABELS else one.student
        return epoch * self.sample.optim.epochs

    def teachers_seconds(self, arm: str) -> float:
        """The teacher's views in the cache, however many students read them."""
        return self.seconds.teacher * self.counts[arm] if arm in self.cached else 0.0

    def row(self, arm: str) -> dict[str, str]:
        """One line of the table."""
        runs, top1 = self.arms[arm], self.top1(arm)
        pairs = zip(self.last(arm), self.last(self.most), strict=True)
        gain = summarise(own - other for own, other in pairs)
        results = [read_json(self.store.path(run) / RESULT) for run in runs]
        assert gain is not None
        return {
            "views": f"{arm} ({self.counts[arm]})" if arm in ("all", "live", LABELS) else arm,
            "top-1 %": f"{top1.mean:.2f}" + (f" +- {top1.std:.2f}" if top1.std is not None else ""),
            "n": str(top1.n),
            f"vs {self.most}, 95 % interval": "" if arm == self.most else interval_text(gain),
            "best %": f"{statistics.mean(result['best']['top1'] for result in results):.2f}",
            "loss": f"{statistics.mean(self.last(arm, 'loss')):.3f}",
            "test loss": f"{statistics.mean(self.last(arm, 'test_loss')):.3f}",
            "agreement %": f"{statistics.mean(self.last(arm, 'agreement')):.2f}",
            "student s": f"{self.students_seconds(arm):.3g}",
            "teacher s": f"{self.teachers_seconds(arm):.3g}",
            "cost of one": f"{self.price(arm, 1):.2f}",
            f"of {SWEEP}": f"{self.price(arm, SWEEP):.2f}",
            "hardware": ", ".join(sorted({result["hardware"] for result in results})),
            "fingerprints": " ".join(fingerprint(run) for run in runs),
        }

    def notes(self) -> str:
        """Explanation of the columns, and the agreement of a cache with the live teacher."""
        one, epochs = self.seconds, self.sample.optim.epochs
        clock = "s" if torch.cuda.is_available() else "CPU s"
        words = [
            f"{epochs} epochs of {self.rows} images. An epoch's steps take a student "
            f"{one.student:.3g} {clock}, {one.live:.3g} with a live teacher and {one.labels:.3g} "
            f"without one; a view of all images takes the teacher {one.teacher:.3g}. Costs are "
            f"(student + teacher x V / {epochs}) over that of asking it live, evaluation left out."
        ]
        if "live" in self.arms and "all" in self.arms:
            words.append(self._agreement())
        return " ".join(words)

    def chart(self) -> str:
        """Accuracy by the number of views, with what one student costs, as an SVG file."""
        points = {arm: self.top1(arm) for arm in self.arms}

        def paint(axes: Axes) -> None:
            known = [(self.counts[arm], points[arm]) for arm in self.cached]
            xs = [count for count, _ in known]
            ys, stds = zip(*((p.mean, p.std or 0.0) for _, p in known), strict=True)
            name = f"{self.sample.method.label} from the cache, and its cost"
            axes.errorbar(xs, ys, stds, label=name, **look(0))
            for arm, (count, point) in zip(self.cached, known, strict=True):
                top = point.mean + (point.std or 0.0)
                text = f"{self.price(arm, 1):.2f}"
                axes.annotate(text, (count, top), (0, 4), textcoords="offset points", ha="center")
            for number, arm in enumerate(("live", LABELS), 1):
                if arm in points:
                    style = {key: value for key, value in look(number).items() if key != "marker"}
                    name = f"{arm}: {self.price(arm, 1):.2f}"
                    axes.axhline(points[arm].mean, label=name, zorder=1, **style)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sorted(set(xs))))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(f"views that {self.sample.optim.epochs} epochs go through")
            axes.set_ylabel("top-1, %")
            axes.margins(0.06, 0.12)
            axes.legend(frameon=False, loc="lower right")

        numbers = ", ".join(f"{arm} {point.mean:.2f}" for arm, point in points.items())
        return draw(paint, f"Top-1 in percent by the number of views: {numbers}.").svg

    def _agreement(self) -> str:
        """Difference between students of all cached views and those of the live teacher."""
        pairs = [*zip(self.arms["all"], self.arms["live"], strict=True)]
        apart, same = [], 0
        for run, other in pairs:
            first, live = (read_metrics(self.store.path(one))[0]["loss"] for one in (run, other))
            apart.append(abs(first - live) / live)
            weights, theirs = (
                read_json(self.store.path(one) / RESULT)["weights"] for one in (run, other)
            )
            same += weights == theirs
        found = compare(self.store, self.sample.outputs_at(0), SPOT_CHECK, default_device())
        ends = zip(self.last("all"), self.last("live"), strict=True)
        return (
            f"all and live: {found.rows} answers of the teacher differ by {found.difference:.1g} "
            f"at most (KL {found.kl:.1g} nats), the mean loss of the first epoch by "
            f"{max(apart):.1g} of itself, top-1 after the last by at most "
            f"{max(abs(a - b) for a, b in ends):.2f} points; {same} of {len(pairs)} pairs have "
            "equal weights."
        )


def interval_text(gain: Summary) -> str:
    """A difference, with its interval where there is one."""
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.2f}"
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


if __name__ == "__main__":
    main()
