"""Spot-adaptive distillation against its ten bases on CIFAR-10, seed by seed.

    python -m experiments.studies.cifar10_sakd [--data FOLDER] [--seeds N] [--bases NAME ...]

For each base: the base alone, the base and KD everywhere (`mode: always`), sakd(base), and
sakd(base) whose policy begins undecided (`homogeneous: false`), with the recipe and the teacher of
`cifar10_methods.py`, whose students it shares. Prints paired differences with their 95 % t
intervals, and writes the report with the pictures of where each student chose to be taught.
`--full PAIR` is the recipe of the CRD benchmark (CIFAR-100, 240 epochs), for a GPU.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import raykd
from experiments.recipes import reference_values as reference
from experiments.studies.cifar10_methods import (
    PAIRS,
    by_method,
    experiment,
    measured,
    put,
    valued,
)
from raykd.cli.shared import STORE, speaking
from raykd.methods.sakd import PAPER
from raykd.report.comparison import summarise

ARMS: dict[str, dict[str, Any]] = {  # beside the base alone
    "base + kd": {"mode": "always"},
    "sakd": {},
    "sakd, undecided": {"homogeneous": False},
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Parquet files; else a download.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--bases", multiple=True, type=click.Choice(PAPER), help="Only these; all if none.")
@click.option("--workers", default=0, show_default=True, help="0: this process; 1: Ray's pool.")
@click.option("--full", type=click.Choice(sorted(PAIRS)), help="The CRD benchmark's recipe.")
@STORE
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option("--quick", is_flag=True, help="One seed over one base on digits, in seconds.")
@speaking
def main(
    data: Path | None,
    seeds: int,
    bases: tuple[str, ...],
    workers: int,
    full: str | None,
    store: str,
    markdown: bool,
    quick: bool,
) -> None:
    """Train what is missing, print the tables and write the page."""
    if quick:
        full, seeds, bases = "quick", 1, bases or ("at",)
    chosen = bases or PAPER
    arms = {(base, arm): method for base in chosen for arm, method in _arms(base, full).items()}
    planned = experiment("cifar10_sakd", [*arms.values()], full, range(seeds), data, {})
    results = raykd.run(planned, store, workers=workers, recipe=False)
    rows = dict(zip(arms, by_method(planned, results), strict=True))
    put([_differences(base, rows) for base in chosen], markdown)
    put([_row(base, arm, students) for (base, arm), students in rows.items()], markdown)


def _arms(base: str, full: str | None) -> dict[str, dict[str, Any]]:
    """The methods that are compared over one base."""
    method = valued(base, full)
    adapted = {**method, **reference.as_base(base)}
    sakd = valued("sakd", full)
    arms = {arm: {**sakd, "base": adapted, **fields} for arm, fields in ARMS.items()}
    return {"base": method, **arms}


def _differences(
    base: str, rows: Mapping[tuple[str, str], Sequence[raykd.StudentResult]]
) -> dict[str, str]:
    """Gain of sakd over a base, seed by seed."""
    top1 = {
        arm: [student.result["last"]["top1"] for student in rows[base, arm]]
        for arm in ("base", *ARMS)
    }
    line = {"base": base, "n": str(len(top1["base"]))}
    for arm, other in (
        ("base + kd", "base"),
        ("sakd", "base"),
        ("sakd", "base + kd"),
        ("sakd, undecided", "base"),
        ("sakd, undecided", "base + kd"),
    ):
        gain = summarise(a - b for a, b in zip(top1[arm], top1[other], strict=True))
        assert gain is not None
        said = f"{gain.mean:+.2f}"
        if gain.low is not None and gain.high is not None:
            said += f" [{gain.low:+.2f}, {gain.high:+.2f}]"
        line[f"{arm} - {other}"] = said
    return line


def _row(base: str, arm: str, students: Sequence[raykd.StudentResult]) -> dict[str, str]:
    """One arm over one base."""
    last = [student.result["last"] for student in students]
    spots = [*last[0].get("selected_by_class", {})]
    spots.sort(key=lambda spot: spot == "logits")  # it is the last decision
    shares = [statistics.mean(line[f"selected_{spot}"] for line in last) for spot in spots]
    taught = zip(spots, shares, strict=True)
    return measured(f"{base}, {arm}", students) | {
        "taught in the last epoch, %": ", ".join(f"{spot} {share:.0f}" for spot, share in taught),
    }


if __name__ == "__main__":
    main()
