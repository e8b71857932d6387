"""An hour of faults: small experiments on a small cluster, all of which is lost now and then.

    python -m tests.launch.soak                    # an hour
    python -m tests.launch.soak --minutes 3        # with shorter experiments

Round after round, an experiment is carried out (a cache, a student of two workers, a sweep) while
workers, nodes, checkpoint writers, drivers and heads are killed at random moments. Then shards are
damaged, removed and truncated, and the same command mends them. After each round, the laws are
checked: everything is what an undisturbed driver makes, bit for bit, each thing once; at most one
epoch was repeated at a time; caches answer as the live teacher does; students load into the plain
network; every test image was counted once; and nothing is left lying about. The last lines say how
many faults there were of each kind, how many were survived, and how many things were lost.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
import safetensors.torch

from raykd import models
from raykd.cli.shared import speaking
from raykd.storage.store import read_json
from raykd.tracking.console import clock
from tests.launch.faults import EPOCHS, KINDS, ROOT, Site, differences, disturbed, leftovers, work

METHODS = ("kd", "skd", "at", "{name: sakd, base: fitnet}")
WHOLE = 20  # minutes from which on experiments are as long as `EPOCHS` says
TEST_IMAGES = 180  # held-out digits


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of what befalls whom, and when.")
@click.option("--faults", default=8, show_default=True, help="In one round, at most.")
@click.option("--quick", is_flag=True, help="One round with one fault.")
@speaking
def main(minutes: float, seed: int, faults: int, quick: bool) -> None:
    """Kill, corrupt and restart for a while, and check that nothing is lost."""
    if quick:
        minutes, faults = 1.0, 1
    until, longest, lost, rounds = time.monotonic() + 60 * minutes, 0.0, 0, 0
    place = Path(tempfile.mkdtemp())
    soak = Soak(place, min(1.0, minutes / WHOLE), random.Random(seed))
    try:
        while not rounds or (not quick and time.monotonic() + longest < until):
            begun = time.monotonic()
            said, broken = soak.round(faults)
            lost += len(broken)
            rounds += 1
            longest = max(longest, time.monotonic() - begun)
            left = max(0.0, until - time.monotonic())
            click.echo(f"round {rounds}, {said}; {clock(left)} left")
            for line in broken:
                click.echo(f"  {line}")
    finally:
        soak.site.close()
    if lost:
        click.echo(f"what is left of it lies in {place}")
    else:
        shutil.rmtree(place)
    for command, counts in soak.happened.items():
        click.echo(f"{command}: {_told(counts)}")
    total = sum(counts.total() for counts in soak.happened.values())
    survived = "not all" if lost else total
    click.echo(f"{rounds} rounds, {total} faults, {survived} survived, {lost} things lost")
    sys.exit(1 if lost else 0)


class Soak:
    """Experiments on one cluster, round after round."""

    def __init__(self, place: Path, share: float, rng: random.Random) -> None:
        """`share` is how much of `EPOCHS` an experiment has."""
        self.site = Site(place, say=click.echo)
        self.happened: dict[str, Counter[str]] = {command: Counter() for command in EPOCHS}
        self._place, self._share, self._rng = place, share, rng
        self._waiting: dict[str, list[str]] = {command: [] for command in EPOCHS}
        self._references: dict[Path, Path] = {}
        self._stores = 0

    def round(self, faults: int) -> tuple[str, list[str]]:
        """One experiment with faults, then damage; what happened, and which laws did not hold."""
        fewest = min(counts.total() for counts in self.happened.values())
        rarest = [each for each, counts in self.happened.items() if counts.total() == fewest]
        command, method = self._rng.choice(rarest), self._rng.choice(METHODS)
        file = self._place / f"{command}-{METHODS.index(method)}.yaml"
        file.write_text(work(command, round(self._share * EPOCHS[command]), method))
        words, reference = [command, str(file)], self._reference(command, file)
        kinds = self._next(command, self._rng.randint(1, faults))
        store = self._place / f"store-{self._stores}"
        self._stores += 1
        happened, repeated = disturbed(self.site, words, store, kinds, self._rng)
        del self._waiting[command][: happened.total()]
        broken = laws(store, reference)
        if repeated > 1:
            broken.append(f"{repeated} epochs were repeated at a time")
        happened += damaged(store, self._rng)
        broken += unnoticed(store)
        disturbed(self.site, ["precompute", str(file)], store, (), self._rng)
        self.happened[command] += happened
        broken += laws(store, reference)
        if not broken:
            shutil.rmtree(store, ignore_errors=True)  # its last workers may still be ending
        return f"{command} of {method}: {_told(happened)}", broken

    def _reference(self, command: str, file: Path) -> Path:
        """The store of the same experiment, which nothing befell."""
        if file not in self._references:
            self._references[file] = self._place / f"reference-{len(self._references)}"
            disturbed(self.site, [command, str(file)], self._references[file], (), self._rng)
        return self._references[file]

    def _next(self, command: str, count: int) -> list[str]:
        """The faults to come, so that all kinds come equally often."""
        waiting = self._waiting[command]
        while len(waiting) < count:
            waiting += self._rng.sample(KINDS, len(KINDS))
        return waiting[:count]


def _told(counts: Mapping[str, int]) -> str:
    """Counts of each kind, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"


def laws(store: Path, reference: Path) -> list[str]:
    """Which laws do not hold in a store that is done."""
    broken = differences(store, reference)
    broken += [f"left behind: {path}" for path in leftovers(store)]
    for folder in store.glob("students/*"):
        recipe, result = read_json(folder / "recipe.json"), read_json(folder / "result.json")
        state = safetensors.torch.load_file(folder / "weights.safetensors")
        plain = models.build(recipe["model"], 10).network
        plain.load_state_dict(state)  # raises for any other name
        counted = result["last"]["top1"] / 100 * TEST_IMAGES
        if abs(counted - round(counted)) > 1e-6:
            broken.append(f"{folder}: {counted} of {TEST_IMAGES} test images are right")
    code, text = _raykd("verify", "--store", str(store))
    if code:
        broken.append(f"verify: {text[-300:]}")
    return broken


def damaged(store: Path, rng: random.Random) -> Counter[str]:
    """Damage some shards of a store; how many in which way."""
    happened: Counter[str] = Counter()
    for damage in (_flip, _truncate, _remove):
        shards = sorted(store.glob("caches/*/view-*.arrow"))
        damage(rng.choice(shards), rng)
        happened[damage.__name__.strip("_")] += 1
    return happened


def unnoticed(store: Path) -> list[str]:
    """A line where `raykd verify` does not find that a store is damaged."""
    code, text = _raykd("verify", "--store", str(store))
    return [] if code == 5 else [f"damaged shards were not found ({code}): {text[-300:]}"]


def _flip(path: Path, rng: random.Random) -> None:
    """One bit of a shard turns."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, rng: random.Random) -> None:
    """A shard's end is missing."""
    data = path.read_bytes() if path.exists() else b"x"
    path.write_bytes(data[: rng.randrange(len(data))])


def _remove(path: Path, rng: random.Random) -> None:
    """A shard is gone."""
    path.unlink(missing_ok=True)


def _raykd(*words: str) -> tuple[int, str]:
    """The status of a command, and what it says."""
    command = [sys.executable, "-c", "from raykd.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    main()
