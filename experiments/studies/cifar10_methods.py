"""Every method beside each other on CIFAR-10: one pair of networks, one recipe, several seeds.

    python -m experiments.studies.cifar10_methods [--data FOLDER] [--seeds N] [--methods NAME ...]

Without a folder of Parquet files torchvision downloads CIFAR-10. The default is what two CPU
cores can do in an hour: resnet20, trained on all 50,000 images, teaches resnet8 on some of them
for a few epochs, so accuracies compare with each other and with no published table. `--full PAIR`
is the recipe of the CRD benchmark instead (CIFAR-100, 240 epochs, 3 seeds), for a GPU.

What is in the store already is not trained again. Spot-adaptive distillation has an experiment of
its own, `cifar10_sakd.py`.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

import raykd
from experiments.recipes import reference_values as reference
from raykd.cli.shared import STORE, print_rows, speaking
from raykd.core.text_table import markdown as as_markdown
from raykd.methods import METHODS

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
@click.option("--workers", default=0, show_default=True, help="0: this process; 1: Ray's pool.")
@click.option("--full", type=click.Choice(sorted(PAIRS)), help="The CRD benchmark's recipe.")
@STORE
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--quick", is_flag=True, help="One seed of two methods on digits, in seconds.")
@speaking
def main(
    data: Path | None,
    seeds: int,
    methods: tuple[str, ...],
    workers: int,
    full: str | None,
    store: str,
    markdown: bool,
    quick: bool,
) -> None:
    """Train what is missing, and print the table."""
    if quick:
        full, seeds, methods = "quick", 1, methods or ("label_only", "kd")
    known = [*(name for name in METHODS if name not in ("combine", "sakd")), *VARIANTS]
    table = []
    for augment in ({}, MIXUP):
        rows = {
            label: filled(label, full)
            for label in known
            if (not methods or label in methods) and shown_as(label) == augment
        }
        if rows:
            planned = experiment("methods", [*rows.values()], full, range(seeds), data, augment)
            results = raykd.run(planned, store, workers=workers, recipe=False)
            table += [_row(*row) for row in zip(rows, by_method(planned, results), strict=True)]
    put(table, markdown)


def shown_as(label: str) -> dict[str, Any]:
    """The fields of `data.augment` that a row changes."""
    return VARIANTS[label][1] if label in VARIANTS else {}


def filled(label: str, full: str | None) -> dict[str, Any]:
    """The method of a row, with its values."""
    method, _ = VARIANTS.get(label, ({"name": label}, {}))
    if "combine" in method:
        parts = [{**valued(name, full), **COMBINED.get(name, {})} for name in method["combine"]]
        return {"combine": parts}
    return {**valued(method["name"], full), **method}


def valued(name: str, full: str | None) -> dict[str, Any]:
    """A method with the sources' values for a pair; without one, what counts in epochs is short.

    The short recipes have the values of no pair, since the sources have none for their networks.
    """
    if full in (None, "quick"):
        return reference.method("cifar10", name) | SHORTENED.get(name, {})
    return reference.method("cifar100", name, PAIRS[full])


def experiment(
    name: str,
    methods: Sequence[dict[str, Any]],
    full: str | None,
    seeds: Sequence[int],
    data: Path | None,
    augment: Mapping[str, Any],
) -> raykd.Experiment:
    """Some methods, each with some seeds; of digits, where `full` is "quick"."""
    if full == "quick":
        tree = yaml.safe_load(QUICK)
    elif full is None:
        tree = {"run": yaml.safe_load(SHORT.read_text())["run"]}
    else:
        teacher, student = PAIRS[full]
        tree = yaml.safe_load(FULL.format(teacher=teacher, student=student))
    tree["run"]["data"]["augment"] |= augment
    # Seed by seed, so that a study that is stopped has every method.
    grid = {"run.seed": seeds, "run.method": methods}
    return raykd.Experiment(tree["run"], grid=grid, data={"path": data}, name=name)


def by_method(
    experiment: raykd.Experiment, results: raykd.Results
) -> list[list[raykd.StudentResult]]:
    """The students of each method of an experiment, in its order."""
    methods = dict.fromkeys(run.method for run in experiment.students())
    return [[one for one in results if one.recipe.method == method] for method in methods]


def _row(label: str, students: Sequence[raykd.StudentResult]) -> dict[str, str]:
    """One line of the table."""
    prelude = students[0].recipe.prelude()
    line = measured(label, students)
    if prelude is not None:
        line["teacher"] += f", after {prelude.method.name}"
    return line


def measured(label: str, students: Sequence[raykd.StudentResult]) -> dict[str, str]:
    """Cells of one method's students that every table has."""
    results, run = [student.result for student in students], students[0].recipe
    agreements = [r["last"]["agreement"] for r in results if "agreement" in r["last"]]
    needed = bool(run.method.needs())
    return {
        "what": label,
        "teacher": "-" if not needed else "cached" if run.cached() else "live",
        "top-1 %": spread([result["last"]["top1"] for result in results]),
        "n": str(len(students)),
        "best %": f"{statistics.mean(result['best']['top1'] for result in results):.2f}",
        "agreement %": spread(agreements) if agreements else "",
        "images/s": f"{statistics.median(r['images_per_second'] for r in results):.0f}",
        "hardware": results[0]["hardware"],
        "fingerprints": " ".join(student.fingerprint for student in students),
    }


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
