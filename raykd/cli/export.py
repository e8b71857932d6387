"""The command that hands networks to those who use them: export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raykd.cli.output import echo
from raykd.cli.shared import JSON, OVERRIDES, PLUGIN, STORE, print_json, speaking
from raykd.core.errors import ConfigError, RaykdError, folded
from raykd.core.words import counted

if TYPE_CHECKING:
    from raykd.export import ExportResult

_FORMATS = ("safetensors", "torch", "onnx")


@click.command()
@click.argument("student", metavar="STUDENT|EXPERIMENT")
@OVERRIDES
@STORE
@PLUGIN
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder to write; of an experiment, each student's is a folder in it.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(_FORMATS),
    multiple=True,
    help="What to write; may be repeated. Everything if not given.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Also an ONNX graph of 8 bits (ONNX Runtime's static quantisation).",
)
@click.option(
    "--push",
    "repository",
    metavar="OWNER/NAME",
    help="Upload the folder to this repository of the Hugging Face Hub; a new one is private.",
)
@click.option("--public", is_flag=True, help="With --push: others see a new repository.")
@JSON
@speaking
def export(
    student: str,
    overrides: tuple[str, ...],
    store: str,
    output: Path,
    formats: tuple[str, ...],
    int8: bool,
    repository: str | None,
    public: bool,
    as_json: bool,
) -> None:
    """Write students as files that need no raykd: weights, torch.export, ONNX.

    STUDENT is a fingerprint, or the beginning of one, as `raykd show students` and `raykd show
    teachers` list them. Of an EXPERIMENT, every finished student is written. Each folder has its
    preprocessing, class names and calibration in config.json, and programs to begin with in
    README.md. Every file is compared with the network on test images.
    """
    from raykd import export as exporter
    from raykd.api.networks import finished_networks, only

    named = finished_networks(student, store, overrides)
    storage, runs, others = named
    if repository is not None:
        from raykd.export import push

        only(student, named)
        push.check(repository)
    elif public:
        raise ConfigError("--public: it says who sees the repository of --push; name one")
    targets, unfinished = [(run, output) for run in runs], others or 0
    if others is not None:  # an experiment's
        targets = [(run, output / exporter.folder_name(run)) for run in runs]
    exports: list[exporter.ExportResult] = []
    errors: list[RaykdError] = []
    for run, folder in targets:
        try:
            exports.append(exporter.export(storage, run, folder, formats, int8=int8))
        except RaykdError as error:
            errors.append(error)
            echo(f"error: {error}", err=True)
            continue
        if not as_json:
            _print(exports[-1])
    summary: dict[str, Any] = {}
    if repository is not None and exports:
        summary["pushed"] = _pushed(exports[0].folder, repository, public=public)
    if as_json:
        summary |= {"errors": [str(error) for error in errors], "unfinished": unfinished}
        print_json({"exports": [_plain(exported) for exported in exports]} | summary)
    elif unfinished:
        verb = "is" if unfinished == 1 else "are"
        students = counted(unfinished, "students")
        echo(f"{students} of this experiment {verb} not finished", err=True)
    if errors:
        sys.exit(folded(errors).code)


def _print(exported: "ExportResult") -> None:
    """Print the written files of one network."""
    name, method = exported.run.model, getattr(exported.run, "method", None)
    by = f", {method.label}" if method is not None else ""
    echo(f"{name}{by}: {exported.folder}")
    task = getattr(exported.run, "task", None)
    embeds = task is not None and (task.embeds or not task.labelled)
    answers = "embeddings" if embeds else "scores"
    for file in exported.files:
        echo(
            f"  {file.name}: {file.bytes / 1e6:.2f} MB; {answers} of {exported.images} test images "
            f"differ by {file.difference:.2g} at most; loads in {file.loads}"
        )
    for name, time in exported.measured["latency"]["files"].items():
        spread = f"eight in ten calls between {time['low_ms']} and {time['high_ms']}"
        echo(f"  {name}: {time['median_ms']} ms for an image on one thread ({spread})")
    if "int8" in exported.measured:
        echo(f"  {_eight_bits(exported.measured['int8'])}")
    if not exported.plain:
        echo("  no model.safetensors: it does not answer with its own classifier")


def _pushed(folder: Path, repository: str, *, public: bool) -> str:
    """Say what is uploaded, and upload it; the address of the repository."""
    from raykd.export import push

    files = push.uploads(folder)
    size = sum(path.stat().st_size for path in files) / 1e6
    seen = "which everybody sees" if public else "which is private"
    echo(
        f"uploading {len(files)} files, {size:.2f} MB, to {repository} ({seen} if it is new): "
        f"{', '.join(path.name for path in files)}",
        err=True,
    )
    url = push.push(folder, repository, public=public)
    echo(f"{url}: uploaded; its card names no license, which is yours to choose", err=True)
    return url


def _eight_bits(facts: dict[str, Any]) -> str:
    """A sentence about the accuracy of the graph of 8 bits."""
    images = f"{facts['test_images']:,} test images"
    if "cosine" in facts:
        return f"8 bits: mean cosine {facts['cosine']:.4f} with the embeddings of 32, {images}"
    exact, rounded = facts["top1"].values()
    return (
        f"8 bits: {rounded:.2f} % of {images} right, {rounded - exact:+.2f} points to 32 bits; the "
        f"same answer for {facts['agreement']:.2f} %"
    )


def _plain(exported: "ExportResult") -> dict[str, Any]:
    """The written files of one network as plain values, for JSON."""
    from raykd.core.record import fingerprint

    return {
        "fingerprint": fingerprint(exported.run),
        "folder": str(exported.folder),
        "images": exported.images,
        "files": [file._asdict() for file in exported.files],
        **exported.measured,
    }
