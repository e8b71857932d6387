"""Cost that spot-adaptive distillation adds to a training step of each of its bases.

    python -m experiments.benchmarks.sakd [--json PATH] [--pairs N] [--device cpu|cuda] \
        [--pair A-B ...]

A step of sakd(base) over one of the base alone, each with the teacher that it would have: a cache
where it reads embeddings, otherwise live. Time is CPU time, on cuda the clock's; memory is the
most that a step holds beyond the weights. The goal is shown, not enforced; the exit status is 0.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from experiments.benchmarks.methods import Bench, Networks, Subject
from raykd.cli.shared import print_rows
from raykd.core.text_table import markdown as as_markdown
from raykd.methods import METHODS
from raykd.methods.sakd import PAPER, SAKD
from raykd.tracking.console import Terminal
from raykd.training.memory import keep_freed_memory

PAIRS = {  # teacher and student
    "resnet20-resnet8": ("resnet20", "resnet8"),
    "resnet56-resnet20": ("resnet56", "resnet20"),
    "resnet32x4-resnet8x4": ("resnet32x4", "resnet8x4"),
    "wrn_40_2-shufflenet_v1": ("wrn_40_2", "shufflenet_v1"),
}
GOAL = 2.5


@dataclass(frozen=True)
class Cost:
    """A step of sakd(base) beside one of the base."""

    networks: str
    base: str
    teacher: str  # source of its outputs, for both: "cached" or "live"
    ratio: float  # the median of the pairs
    lowest: float
    highest: float
    seconds: float  # per step of sakd(base)
    memory: int  # bytes of a step of sakd(base) at its peak
    memory_of_base: int


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the table there.")
@click.option("--pairs", "count", default=5, show_default=True, help="Pairs of each measurement.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--pair", "chosen", multiple=True, type=click.Choice(sorted(PAIRS)))
@click.option("--quick", is_flag=True, help="The smallest pair, once, over two bases.")
def main(
    target: Path | None,
    count: int,
    device: str,
    markdown: bool,
    chosen: tuple[str, ...],
    quick: bool,
) -> None:
    """Print the table."""
    bases = PAPER
    if quick:
        chosen, count, bases = ("resnet20-resnet8",), 1, PAPER[:2]
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process of ours that trains
    bench, say = Bench(torch.device(device), count, 0.03), Terminal().say
    costs: list[Cost] = []
    for name in chosen or PAIRS:
        networks = Networks(PAIRS[name], bench.device)
        for base in bases:
            say(f"{networks.title}: {base}")
            costs.append(cost(bench, networks, base))
    table = rows(costs)
    if markdown:
        print(as_markdown(table))
    else:
        print_rows(table)
        print(f"a step of sakd(base) over one of the base; the goal is {GOAL} at most")
    if target is not None:
        target.write_text(json.dumps([asdict(row) for row in costs], indent=2) + "\n")


def cost(bench: Bench, networks: Networks, base: str) -> Cost:
    """Cost of choosing the spots over one base."""
    method = METHODS[base](name=base)
    adaptive, alone = Subject(SAKD(base=method), networks), Subject(method, networks)
    with_sakd, base_alone = bench.measure(adaptive.step(), alone.step())
    ratios = [a / b for a, b in zip(with_sakd, base_alone, strict=True)]
    return Cost(
        networks.title,
        base,
        adaptive.source(),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(with_sakd),
        bench.peak(adaptive.step()),
        bench.peak(alone.step()),
    )


def rows(costs: list[Cost]) -> list[dict[str, str]]:
    """A line for each base: of each pair of networks the ratio, its range, the ratio of memory."""
    lines: dict[str, dict[str, str]] = {}
    for cost in costs:
        line = lines.setdefault(cost.base, {"base": cost.base, "teacher": cost.teacher})
        memory = cost.memory / cost.memory_of_base
        spread = f"{cost.lowest:.2f} to {cost.highest:.2f}"
        line[cost.networks] = f"{cost.ratio:.2f} ({spread}), memory {memory:.2f}"
    return [*lines.values()]


if __name__ == "__main__":
    main()
