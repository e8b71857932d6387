"""Every method beside each other on CIFAR-10: one pair of networks, one recipe, several seeds.

    python -m experiments.studies.cifar10_methods [--data FOLDER] [--seeds N] [--methods NAME ...]

Without a folder of Parquet files torchvision downloads CIFAR-10. The default is what two CPU
cores can do in an hour: resnet20, trained on all 50,000 images, teaches resnet8 on some of them
for a few epochs, so accuracies compare with each other and with no published table. `--full PAIR`
is the recipe of the CRD benchmark instead (CIFAR-100, 240 epochs, 3 seeds), for a GPU.

Each student trains in a process of its own, so that its peak memory is its own. What is in the
store already is not trained again. Spot-adaptive distillation has an experiment of its own,
`cifar10_sakd.py`.
"""

import json
import multiprocessing
import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
import yaml

from experiments.recipes import reference_values as reference
from raykd.cli.shared import STORE, print_rows
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core.record import fingerprint
from raykd.core.text_table import markdown as as_markdown
from raykd.launch.executor import execute
from raykd.methods import METHODS
from raykd.recipes import StudentRun
from raykd.storage.store import Store, read_json, write_json
from raykd.tracking.console import Terminal
from raykd.training.checkpointing import RESULT
from raykd.training.memory import keep_freed_memory, peak_bytes
from raykd.training.runs import local_host, train

_Row = TypeVar("_Row", bound=Hashable)
PEAK = "peak.json"  # beside a student's result
PAIRS = {
    "resnet56-resnet20": ("resnet56", "resnet20"),
    "resnet32x4-resnet8x4": ("resnet32x4", "resnet8x4"),
    "wrn_40_2-wrn_16_2": ("wrn_40_2", "wrn_16_2"),
    "vgg13-vgg8": ("vgg13", "vgg8"),
}
SHORT = Path(reference.__file__).with_name("cifar10.yaml")
FULL = """
run:
  model: {student}
  data: {{name: cifar100, augment: {{pad: 4, flip: true}}}}
  teacher: {{model: {teacher}, save_every: 240}}
"""
# What counts in epochs is shortened with the recipe.
SHORTENED: dict[str, dict[str, Any]] = {
    "dkd": {"warmup_epochs": 1},
    "reviewkd": {"warmup_epochs": 1},
    "ctkd": {"curriculum_epochs": 1},
    "ab": {"init_epochs": 1},
    "fsp": {"init_epochs": 1},
    "ft": {"paraphraser_epochs": 1},
    "crd": {"negatives": 4096},  # fewer than the rows of other classes
}
QUICK = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.33, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 2, batch: 32}
"""
MIXUP = {"mix": {"kind": "mixup", "alpha": 1.0}}
COMBINED = {"kd": {"weight": 1.0}}  # the benchmark's "X + KD"
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # label -> method, augment
    "crd + kd": ({"combine": ["crd", "kd"]}, {}),
    "label_only + mixup": ({"name": "label_only"}, MIXUP),
    "kd + mixup": ({"name": "kd"}, MIXUP),
    "stkd, mixed outputs": ({"name": "stkd", "teacher": "mixed_output"}, {}),
    "stkd, incorrect_only 0.5": ({"name": "stkd", "incorrect_only": 0.5}, {}),
    "stkd, clean_kd 1": ({"name": "stkd", "clean_kd": 1.0}, {}),
    "stkd, cutmix": ({"name": "stkd", "mix": "cutmix"}, {}),
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Parquet files; else a download.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--methods", multiple=True, help="Only these; every method and variant if none.")
@click.option("--parallel", default=1, show_default=True, help="Students at a time.")
@click.option("--full", type=click.Choice(sorted(PAIRS)), help="The CRD benchmark's recipe.")
@STORE
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--quick", is_flag=True, help="One seed of two methods on digits, in seconds.")
def main(
    data: Path | None,
    seeds: int,
    methods: tuple[str, ...],
    parallel: int,
    full: str | None,
    store: str,
    markdown: bool,
    quick: bool,
) -> None:
    """Train what is missing, and print the table."""
    if quick:
        full, seeds, methods = "quick", 1, methods or ("label_only", "kd")
    torch.set_num_threads(1)
    artefacts, terminal = Store(store), Terminal()
    known = [*(name for name in METHODS if name not in ("combine", "sakd")), *VARIANTS]
    labels = [label for label in known if not methods or label in methods]
    files = {label: _text(label, full, range(seeds), data) for label in labels}
    rows, _ = complete("methods", files, artefacts, parallel, terminal)
    table = [_row(artefacts, label, group) for label, group in rows.items()]
    put(table, markdown)


def _text(label: str, full: str | None, seeds: Sequence[int], data: Path | None) -> str:
    """The experiment file of one row."""
    method, augment = VARIANTS.get(label, ({"name": label}, {}))
    if "combine" in method:
        parts = [{**valued(name, full), **COMBINED.get(name, {})} for name in method["combine"]]
        return recipe({"combine": parts}, full, seeds, data, augment)
    given = {**valued(method["name"], full), **method}
    return recipe(given, full, seeds, data, augment)


def valued(name: str, full: str | None) -> dict[str, Any]:
    """A method with the sources' values for a pair; without one, what counts in epochs is short.

    The short recipes have the values of no pair, since the sources have none for their networks.
    """
    if full in (None, "quick"):
        return reference.method("cifar10", name) | SHORTENED.get(name, {})
    return reference.method("cifar100", name, PAIRS[full])


def recipe(
    method: dict[str, Any],
    full: str | None,
    seeds: Sequence[int],
    data: Path | None,
    augment: dict[str, Any],
) -> str:
    """The experiment file of some seeds of one method; of digits, where `full` is "quick"."""
    if full == "quick":
        tree = yaml.safe_load(QUICK)
    elif full is None:
        tree = {"run": yaml.safe_load(SHORT.read_text())["run"]}
    else:
        teacher, student = PAIRS[full]
        tree = yaml.safe_load(FULL.format(teacher=teacher, student=student))
    tree["run"]["method"] = method
    tree["run"]["data"]["augment"] |= augment
    tree["grid"] = {"run.seed": list(seeds)}
    tree["data"] = {"path": None if data is None else str(data)}
    return yaml.safe_dump(tree)


def complete(
    name: str, files: Mapping[_Row, str], store: Store, parallel: int, terminal: Terminal
) -> tuple[dict[_Row, tuple[StudentRun, ...]], Experiment]:
    """The students of some experiment files, row by row, once all are trained."""
    rows = {row: parse(text, name) for row, text in files.items()}
    every = tuple(run for part in rows.values() for run in part.runs)
    first = next(iter(rows.values()))
    experiment = resolve(replace(first, runs=every), store, terminal.say)
    with terminal.showing():
        execute(experiment, store, terminal, students=False)
        _preludes(store, experiment.runs, terminal)
        # Seed by seed, so that a table of what is there has every method.
        missing = (run for run in experiment.runs if not store.has(run))
        _train(store, sorted(missing, key=lambda run: run.seed), parallel, terminal)
    runs = iter(experiment.runs)
    return {row: tuple(islice(runs, len(part.runs))) for row, part in rows.items()}, experiment


def _preludes(store: Store, runs: Sequence[StudentRun], terminal: Terminal) -> None:
    """Train what comes before some methods' own training."""
    for prelude in dict.fromkeys(before for run in runs if (before := run.prelude())):
        if not store.has(prelude):
            terminal.say(f"{prelude.method.name}, seed {prelude.seed}")
            train(store, prelude, local_host(store, prelude, Scale()))


def _train(store: Store, runs: Sequence[StudentRun], parallel: int, terminal: Terminal) -> None:
    """Train students, each in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # or every student would import torch anew
    with ProcessPoolExecutor(parallel, context, max_tasks_per_child=1) as pool:
        tasks = {pool.submit(_train_one, store.url, run): run for run in runs}
        for number, task in enumerate(as_completed(tasks), 1):
            run = tasks[task]
            top1 = task.result()
            terminal.say(
                f"{number} of {len(runs)}: {run.method.label} seed {run.seed}: {top1:.2f} %"
            )


def _train_one(root: str, run: StudentRun) -> float:
    """Train one student here; its last top-1."""
    torch.set_num_threads(1)
    keep_freed_memory()
    store = Store(root)
    host = local_host(store, run, Scale(checkpoint_seconds=60))
    train(store, run, host)
    write_json(store.path(run) / PEAK, {"bytes": peak_bytes(host.device)})
    return read_json(store.path(run) / RESULT)["last"]["top1"]


def _row(store: Store, label: str, runs: Sequence[StudentRun]) -> dict[str, str]:
    """One line of the table."""
    results = [read_json(store.path(run) / RESULT) for run in runs]
    memory = [read_json(path)["bytes"] / 1e6 for path in peaks(store, runs)]
    rates = [result["images_per_second"] for result in results]
    agreements = [r["last"]["agreement"] for r in results if "agreement" in r["last"]]
    first = runs[0]
    needs = first.method.needs()
    teacher = "-" if not needs else "cached" if first.cached() else "live"
    prelude = first.prelude()
    return {
        "what": label,
        "teacher": teacher if prelude is None else f"{teacher}, after {prelude.method.name}",
        "top-1 %": spread([result["last"]["top1"] for result in results]),
        "n": str(len(runs)),
        "best %": f"{statistics.mean(result['best']['top1'] for result in results):.2f}",
        "agreement %": spread(agreements) if agreements else "",
        "images/s": f"{statistics.median(rates):.0f}",
        "peak MB": f"{max(memory):.0f}" if memory else "",
        "hardware": results[0]["hardware"],
        "fingerprints": " ".join(fingerprint(run) for run in runs),
    }


def peaks(store: Store, runs: Sequence[StudentRun]) -> Iterator[Path]:
    """The files of the peak memory of those runs that were trained here."""
    return (path for run in runs if (path := store.path(run) / PEAK).is_file())


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} +- {deviation:.2f}"


def put(rows: list[dict[str, str]], markdown: bool) -> None:
    """Print a table; without Markdown, the fingerprints apart."""
    if markdown:
        print(as_markdown(rows))
        return
    hidden = ("fingerprints", "hardware")
    print_rows([{k: v for k, v in row.items() if k not in hidden} for row in rows])
    if "fingerprints" in rows[0]:
        print(json.dumps({row["what"]: row["fingerprints"].split() for row in rows}))


if __name__ == "__main__":
    main()
