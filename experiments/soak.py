"""An hour of faults: small experiments on a small cluster, all of which is lost now and then.

    python experiments/soak.py                    # an hour
    python experiments/soak.py --minutes 5        # as in CI

Round after round, an experiment is carried out (a cache, a student of two workers, a sweep) while
workers, nodes, checkpoint writers, drivers and heads are killed at random moments. Then shards are
damaged, removed and truncated, and the same command mends them. After each round, the laws are
checked: everything is what an undisturbed driver makes, bit for bit, each thing once; at most one
epoch was repeated at a time; caches answer as the live teacher does; students load into the plain
network; every test image was counted once; and nothing is left lying about. The last line says how
many faults there were, how many were survived, and how many things were lost.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import safetensors.torch
from faults import KINDS, ROOT, Site, differences, disturbed, leftovers, work

from raykd import models
from raykd.cli.shared import speaking
from raykd.progress import clock
from raykd.store import read_json

METHODS = ("kd", "skd", "at", "{name: sakd, base: fitnet}")
EPOCHS = {"precompute": 150, "run": 150, "sweep": 60}  # of a round's command
TEST_IMAGES = 593  # of the digits, held out


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of what befalls whom, and when.")
@click.option("--faults", default=4, show_default=True, help="In one round, at most.")
@speaking
def main(minutes: float, seed: int, faults: int) -> None:
    """Kill, corrupt and restart for a while, and check that nothing is lost."""
    rng, until = random.Random(seed), time.monotonic() + 60 * minutes
    happened: Counter[str] = Counter()
    lost, rounds, longest, references = 0, 0, 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        site = Site(place, say=click.echo)
        try:
            while time.monotonic() + longest < until or not rounds:
                begun = time.monotonic()
                command, method = rng.choice([*EPOCHS]), rng.choice(METHODS)
                file = place / f"{command}-{METHODS.index(method)}.yaml"
                file.write_text(work(command, EPOCHS[command], method))
                words = [command, str(file)]
                if file not in references:
                    references[file] = place / f"reference-{len(references)}"
                    disturbed(site, words, references[file], (), rng)
                found = _round(
                    site, words, place / f"store-{rounds}", references[file], faults, rng
                )
                happened += found[0]
                lost += len(found[1])
                rounds += 1
                longest = max(longest, time.monotonic() - begun)
                told = ", ".join(f"{count} {kind}" for kind, count in sorted(found[0].items()))
                left = max(0.0, until - time.monotonic())
                click.echo(f"round {rounds}, {command} of {method}: {told}; {clock(left)} left")
                for line in found[1]:
                    click.echo(f"  {line}")
        finally:
            site.close()
    total = sum(happened.values())
    click.echo(
        f"{rounds} rounds, {total} faults ({', '.join(f'{n} {k}' for k, n in happened.items())}), "
        f"{total if not lost else 'not all'} survived, {lost} things lost"
    )
    sys.exit(1 if lost else 0)


def _round(
    site: Site, words: Sequence[str], store: Path, reference: Path, faults: int, rng: random.Random
) -> tuple[Counter[str], list[str]]:
    """One experiment with faults, then damage; what happened, and which laws did not hold."""
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(1, faults))]
    every = (3.0, 30.0 if words[0] == "run" else 10.0)  # a group of workers takes long to come up
    happened, repeated = disturbed(site, words, store, kinds, rng, every)
    broken = _laws(store, reference)
    if repeated > 1:
        broken.append(f"{repeated} epochs were repeated at a time")
    for damage in (_flip, _truncate, _remove):
        shards = sorted(store.glob("caches/*/view-*.arrow"))
        victim = rng.choice(shards)
        damage(victim, rng)
        happened[damage.__name__.strip("_")] += 1
    code, text = _raykd("verify", "--store", str(store))
    if code != 5:
        broken.append(f"damaged shards were not found ({code}): {text[-300:]}")
    disturbed(site, ["precompute", words[1]], store, (), rng)
    return happened, broken + _laws(store, reference)


def _laws(store: Path, reference: Path) -> list[str]:
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
