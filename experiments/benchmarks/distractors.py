"""Faces among distractors: time and memory of rank-1 recognition, by their number.

    python -m experiments.benchmarks.distractors            # up to a million of 512 numbers
    python -m experiments.benchmarks.distractors --quick

Embeddings are drawn, block by block, as a network would give them; no file holds them all. The
memory is the process's peak above what it had before, so it should not grow with the number.
"""

import resource
import time
from collections.abc import Iterator

import click
import torch
from torch import Tensor

from raykd.tasks.verification import rank_1

PEOPLE, EACH = 80, 10  # probes: some 800 images


def probes(width: int) -> tuple[Tensor, Tensor]:
    """Embeddings [800, D] that differ less within a person than between two, and their labels."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(PEOPLE).repeat_interleave(EACH)
    centres = torch.randn(PEOPLE, width, generator=draw)
    return centres[labels] + 2.0 * torch.randn(len(labels), width, generator=draw), labels


def blocks(count: int, width: int, size: int) -> Iterator[Tensor]:
    """Embeddings [n, D] of distractors, `size` at a time."""
    draw = torch.Generator().manual_seed(1)
    for start in range(0, count, size):
        yield torch.randn(min(size, count - start), width, generator=draw)


@click.command()
@click.option("--width", default=512, show_default=True, help="Numbers of an embedding.")
@click.option("--size", default=10_000, show_default=True, help="Distractors of a block.")
@click.option("--quick", is_flag=True, help="A thousand distractors at most.")
def main(width: int, size: int, quick: bool) -> None:
    """Print a line for each number of distractors."""
    known, labels = probes(width)
    for count in (100, 1_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
        before, started = _peak(), time.monotonic()
        share = rank_1(known, labels, blocks(count, width, size), (count,))[count]
        seconds = time.monotonic() - started
        print(
            f"{count:>9,} distractors: rank-1 {100 * share:.1f} %, {seconds:.1f} s with "
            f"{torch.get_num_threads()} threads, {(_peak() - before) / 1e6:.0f} MB more",
            flush=True,
        )


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
