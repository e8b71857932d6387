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
import torch

from experiments.recipes import reference_values as reference
from experiments.studies.cifar10_methods import PAIRS, complete, peaks, put, recipe, spread, valued
from raykd.cli.shared import STORE
from raykd.core.record import fingerprint
from raykd.methods.sakd import PAPER
from raykd.recipes import StudentRun
from raykd.report import gather, write_page
from raykd.report.comparison import summarise
from raykd.storage.store import Store, read_json
from raykd.tracking.console import Terminal
from raykd.training.checkpointing import RESULT

ARMS: dict[str, dict[str, Any]] = {  # beside the base alone
    "base + kd": {"mode": "always"},
    "sakd": {},
    "sakd, undecided": {"homogeneous": False},
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Parquet files; else a download.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--bases", multiple=True, type=click.Choice(PAPER), help="Only these; all if none.")
@click.option("--parallel", default=1, show_default=True, help="Students at a time.")
@click.option("--full", type=click.Choice(sorted(PAIRS)), help="The CRD benchmark's recipe.")
@STORE
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option("--quick", is_flag=True, help="One seed over one base on digits, in seconds.")
def main(
    data: Path | None,
    seeds: int,
    bases: tuple[str, ...],
    parallel: int,
    full: str | None,
    store: str,
    markdown: bool,
    quick: bool,
) -> None:
    """Train what is missing, print the tables and write the page."""
    if quick:
        full, seeds, bases = "quick", 1, bases or ("at",)
    torch.set_num_threads(1)
    artefacts, terminal = Store(store), Terminal()
    chosen = bases or PAPER
    arms = {base: _arms(base, full) for base in chosen}
    files = {
        (base, arm): recipe(method, full, range(seeds), data, {})
        for base, methods in arms.items()
        for arm, method in methods.items()
    }
    rows, experiment = complete("cifar10_sakd", files, artefacts, parallel, terminal)
    put([_differences(artefacts, base, rows) for base in chosen], markdown)
    put([_row(artefacts, base, arm, group) for (base, arm), group in rows.items()], markdown)
    page = artefacts.root / "reports" / "cifar10_sakd.html"
    page.parent.mkdir(exist_ok=True)
    write_page(gather(artefacts, experiment), page)
    terminal.say(f"the report is {page}")


def _arms(base: str, full: str | None) -> dict[str, dict[str, Any]]:
    """The methods that are compared over one base."""
    method = valued(base, full)
    adapted = {**method, **reference.as_base(base)}
    sakd = valued("sakd", full)
    arms = {arm: {**sakd, "base": adapted, **fields} for arm, fields in ARMS.items()}
    return {"base": method, **arms}


def _top1(store: Store, runs: Sequence[StudentRun]) -> list[float]:
    """The accuracies after the last epoch."""
    return [read_json(store.path(run) / RESULT)["last"]["top1"] for run in runs]


def _differences(
    store: Store, base: str, rows: Mapping[tuple[str, str], Sequence[StudentRun]]
) -> dict[str, str]:
    """Gain of sakd over a base, seed by seed."""
    top1 = {arm: _top1(store, rows[base, arm]) for arm in ("base", *ARMS)}
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


def _row(store: Store, base: str, arm: str, runs: Sequence[StudentRun]) -> dict[str, str]:
    """One arm over one base."""
    results = [read_json(store.path(run) / RESULT) for run in runs]
    last = [result["last"] for result in results]
    spots = [*last[0].get("selected_by_class", {})]
    spots.sort(key=lambda spot: spot == "logits")  # it is the last decision
    shares = [statistics.mean(line[f"selected_{spot}"] for line in last) for spot in spots]
    memory = [read_json(path)["bytes"] / 1e6 for path in peaks(store, runs)]
    needs = runs[0].method.needs()
    return {
        "what": f"{base}, {arm}",
        "teacher": "-" if not needs else "cached" if runs[0].cached() else "live",
        "top-1 %": spread([line["top1"] for line in last]),
        "n": str(len(runs)),
        "best %": f"{statistics.mean(result['best']['top1'] for result in results):.2f}",
        "agreement %": spread([line["agreement"] for line in last]),
        "taught in the last epoch, %": ", ".join(
            f"{spot} {share:.0f}" for spot, share in zip(spots, shares, strict=True)
        ),
        "images/s": f"{statistics.median(r['images_per_second'] for r in results):.0f}",
        "peak MB": f"{max(memory):.0f}" if memory else "",
        "hardware": results[0]["hardware"],
        "fingerprints": " ".join(fingerprint(run) for run in runs),
    }


if __name__ == "__main__":
    main()
