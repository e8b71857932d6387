"""Wait of an epoch's first step for its view of a cache, with and without prefetching.

    python -m experiments.benchmarks.views [--rows N] [--far N] [--steps N] [--device cuda]

A step looks up a shuffled batch of a dense cache of 1000 classes and then computes for some time,
as a student would. The pages of the shards were dropped before, as if they were not read yet.
The ratio is the first step's time over the median of the others'; the seconds that reading a view
takes are beside it. Places: a folder, the same as file://, and s3:// on a server on loopback
(moto, a process of its own, which is slow: its views are smaller).
"""

import contextlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.table import Table

from experiments.benchmarks.measure import put
from raykd.data.loading.sampler import epoch_order
from raykd.outputs.manifest import Manifest, Part, split, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.outputs.shard_files import ShardFolder
from raykd.storage.store import Store
from raykd.training.memory import keep_freed_memory

CLASSES = 1000
BATCH = 256
EPOCHS = 3  # each with a view of its own; the first one waits in any case


@dataclass(frozen=True)
class Place:
    """Location of a cache."""

    name: str
    url: str
    rows: int


@click.command()
@click.option("--rows", default=200_000, show_default=True, help="Of a view in a folder.")
@click.option("--far", default=20_000, show_default=True, help="Of a view on the server.")
@click.option("--steps", default=400, show_default=True, help="Of an epoch.")
@click.option("--busy", default=0.03, show_default=True, help="Seconds that a step computes.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--quick", is_flag=True, help="Small views and few steps: the same code in seconds.")
def main(rows: int, far: int, steps: int, busy: float, device: str, quick: bool) -> None:
    """Print the table."""
    if quick:
        rows, far, steps, busy = 2000, 1000, 5, 0.001
    torch.set_num_threads(1)
    keep_freed_memory()
    table = Table(title="the first step of an epoch")
    for name in ("place", "MB a view", "ahead", "first / median", "first, ms", "median, ms"):
        table.add_column(name, justify="left" if name == "place" else "right")
    with tempfile.TemporaryDirectory() as name, _server() as endpoint:
        folder = Path(name)
        os.environ["RAYKD_LOCAL"] = str(folder / "writer")
        places = [
            Place("folder", str(folder / "local"), rows),
            Place("file://", f"file://{folder}/mounted", rows),
        ]
        if endpoint is not None:
            places.append(Place("s3://", _bucket(endpoint), far))
        for place in places:
            manifest = _filled(place)
            for ahead in (False, True):
                # A node that was never here.
                os.environ["RAYKD_LOCAL"] = str(folder / f"reader-{secrets.token_hex(4)}")
                times = _epochs(place, manifest, steps, busy, device, ahead=ahead)
                first = statistics.median(epoch[0] for epoch in times[1:])
                median = statistics.median(t for epoch in times[1:] for t in epoch[1:])
                size = place.rows * CLASSES * 2 / 1e6
                numbers = (first / median, 1000 * first, 1000 * median)
                cells = (f"{size:.0f}", "yes" if ahead else "no", *(f"{n:.2f}" for n in numbers))
                table.add_row(place.name, *cells)
    put(table)


def _cache(place: Place) -> tuple[Store, ShardFolder]:
    store = Store(place.url)
    return store, ShardFolder(store, store.root / "caches" / "random")


def _filled(place: Place) -> Manifest:
    """A cache of random numbers, every view in two shards or more."""
    _, shelf = _cache(place)
    shelf.drafts.mkdir(parents=True, exist_ok=True)
    shards = []
    for view in range(EPOCHS):
        for part in split([Part(view, 0, place.rows)], -(-place.rows // 2)):
            generator = torch.Generator().manual_seed(view)
            values = torch.randn(len(part), CLASSES, generator=generator).sub_(4).half()
            columns = {"logits": values, "maximum": torch.zeros(len(part))}
            shard = write_shard(shelf.drafts, part, columns)
            shelf.add(shard)
            shards.append(shard)
    return Manifest({}, "", place.rows, tuple(shards))


def _epochs(
    place: Place, manifest: Manifest, steps: int, busy: float, device: str, *, ahead: bool
) -> list[list[float]]:
    """Seconds of every step of every epoch."""
    store, shelf = _cache(place)
    cache = OutputsCache(
        shelf.folder, manifest, device, shelf if store.node_cache is not None else None
    )
    _drop_pages(shelf.folder)
    if store.node_cache is not None and place.url.startswith("file://"):
        _drop_pages(store.node_cache.remote.at("caches/random")[1])
    times: list[list[float]] = []
    left, right = torch.randn(2, 512, 512, device=device)
    for epoch in range(EPOCHS):
        batches = epoch_order(0, epoch, place.rows).to(device).split(BATCH)
        if ahead:
            cache.prefetch(epoch)
            if epoch + 1 < EPOCHS:
                cache.prefetch(epoch + 1)
        times.append([])
        for step in range(steps):
            started = time.perf_counter()
            cache.take(batches[step % (len(batches) - 1)], epoch)
            while time.perf_counter() - started < busy:
                left = (left @ right).clamp_(-1, 1)
                if device != "cpu":
                    torch.cuda.synchronize()
            times[-1].append(time.perf_counter() - started)
    return times


def _drop_pages(folder: Path | str) -> None:
    """Have the system forget what it keeps of a folder's files."""
    for path in Path(folder).glob("*.arrow"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


@contextlib.contextmanager
def _server() -> Iterator[str | None]:
    """The address of a server that speaks S3; None where moto is not installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}" if _answers(process, port) else None
    finally:
        process.terminate()
        process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        time.sleep(0.2)
    return False


def _bucket(endpoint: str) -> str:
    """The URL of a new bucket."""
    from pyarrow import fs

    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    os.environ.update(keys | {"AWS_EC2_METADATA_DISABLED": "true"})
    query = f"endpoint_override={endpoint}&region=us-east-1"
    files, _ = fs.FileSystem.from_uri(f"s3://views?{query}&allow_bucket_creation=true")
    files.create_dir("views")
    return f"s3://views/store?{query}"


if __name__ == "__main__":
    main()
