"""The command that packs: images of any source into Arrow shards."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

from raykd.cli.shared import JSON, print_json, speaking

if TYPE_CHECKING:
    from raykd.data.packing import Packing
    from raykd.tracking.console import Terminal


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("--name", help="Kind of dataset; else what SOURCE looks like: folder, table, tar.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Ray workers; 0: this process, without Ray.",
)
@click.option("--address", help="Ray cluster to join; else a running one, else one of our own.")
@click.option(
    "--shard-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=256.0,
    show_default=True,
    help="Size of a shard; each worker holds one in memory.",
)
@click.option(
    "--labels",
    type=click.Choice(["classes", "none"]),
    default="classes",
    show_default=True,
    help="none: images alone, from any folders, tables or tars of images.",
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do where a file is no image.",
)
@click.option("--decode", is_flag=True, help="Decode every image, to find damaged ones; slow.")
@JSON
@speaking
def pack(
    source: str,
    destination: str,
    name: str | None,
    workers: int,
    address: str | None,
    shard_mb: float,
    labels: str,
    on_bad_image: str,
    decode: bool,
    as_json: bool,
) -> None:
    """Pack the images of SOURCE into Arrow shards in the folder DESTINATION.

    Both are paths or URLs (s3://bucket/folder, gs://bucket/folder). SOURCE is a folder with one
    folder per class, a table file or a folder of them, tar shards, a folder of Hugging Face's
    save_to_disk, or hf:owner/name on the Hub; with --name, any dataset of `raykd show datasets`, -
    where that has a downloader of its own. Images stay encoded as they are. The same command goes
    on where one was stopped, and repairs what was damaged.
    """
    from raykd.api.packs import pack_source
    from raykd.tracking.console import Terminal

    terminal = Terminal()
    started = time.monotonic()
    packing, summary = pack_source(
        source,
        destination,
        terminal,
        name=name,
        workers=workers,
        address=address,
        shard_mb=shard_mb,
        labelled=labels == "classes",
        skip_bad=on_bad_image == "skip",
        decode=decode,
    )
    if as_json:
        print_json(summary | {"seconds": time.monotonic() - started})
    else:
        _say_done(terminal, packing, summary)


def _say_done(terminal: "Terminal", packing: "Packing", summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{rows:,} {split}" for split, rows in summary["images"].items())
    speed = (
        f"{summary['made']} made now: {summary['images_per_second']:,.0f} images/s, "
        f"{summary['bytes_per_second'] / 1e6:,.0f} MB/s"
    )
    terminal.say(
        f"{counts} images, {summary['bytes'] / 1e6:,.1f} MB in {summary['shards']} shards, "
        + (speed if summary["made"] else "which were all there, and are whole")
    )
    if summary["skipped"]:
        terminal.say(f"{summary['skipped']:,} files that are no images were left out")
    click.echo(f"data: {{path: {json.dumps(packing.files.root)}}}")
    labels = "" if packing.dataset.names else "labels: none, "
    click.echo(f"run: {{data: {{name: table, {labels}stream: {{}}}}}}")
