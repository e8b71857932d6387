"""The command line.

Exit status: 0 done, 1 an unexpected failure, 2 the experiment or the command cannot be read,
3 images cannot be used, 4 a cache is of another recipe, 5 a file is damaged or missing, 6 not
enough disk or processors, 7 workers failed, 130 stopped by Ctrl-C. What was finished is kept in
every case, and the same command goes on from there.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from raykd import __version__
from raykd.errors import ConfigError, RaykdError

_EXPERIMENT = click.argument("experiment", type=click.Path(path_type=Path))
_OVERRIDES = click.argument("overrides", nargs=-1)
_STORE = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path(os.environ.get("RAYKD_STORE", "raykd-store")),
    show_default="$RAYKD_STORE or ./raykd-store",
    help="Folder of all artefacts; every worker must be able to reach it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def _speaking(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with our errors as one message and an exit status of their own."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except RaykdError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.code)
        except KeyboardInterrupt:
            click.echo("stopped; what was finished is kept, and the same command goes on", err=True)
            sys.exit(130)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raykd")
def main() -> None:
    """Distil image classifiers from a cache of the teacher's outputs, on Ray.

    An EXPERIMENT is a YAML file; OVERRIDES change single keys of it: run.seed=3, scale.workers=4,
    data.path=/data/images.
    """


@main.command()
@_EXPERIMENT
@_OVERRIDES
@_STORE
@_JSON
@_speaking
def run(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Train teachers and students, and write a table and a page."""
    from raykd import report
    from raykd.launch.work import carry_out
    from raykd.progress import clock

    resolved, place, teller = _resolved(experiment, overrides, store)
    _print_recipe(resolved, teller)
    with teller.showing():
        outcome = carry_out(resolved, place, teller)
    summary = report.gather(place, resolved)
    page = place.root / "reports" / f"{resolved.name}.html"
    report.write_page(summary, page)
    reused = {kind: count for kind, count in outcome.reused.items() if count}
    if reused:
        counts = ", ".join(f"{count} {kind}" for kind, count in reused.items())
        teller.say(f"reused from {place.root}: {counts}")
    teller.say(f"done in {clock(outcome.seconds)}; page: {page}")
    if as_json:
        work = {"made": outcome.made, "reused": outcome.reused, "seconds": outcome.seconds}
        _print_json(report.to_json(summary) | {"work": work, "page": str(page)})
    else:
        _console().print(report.console_table(summary))


@main.command()
@_EXPERIMENT
@_OVERRIDES
@_STORE
@_JSON
@_speaking
def plan(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Say what a run would compute, write and take, before anything runs."""
    from dataclasses import asdict

    from raykd.engine.caches import check_room
    from raykd.engine.estimate import estimate
    from raykd.plan import plan as plan_of
    from raykd.progress import clock

    resolved, place, _ = _resolved(experiment, overrides, store)
    missing = [student for student in resolved.runs if not place.has(student)]
    work = plan_of(missing)
    todo = [teacher for teacher in work.teachers if not place.has(teacher)]
    items = estimate(resolved, place, type(work)(tuple(todo), work.caches, work.students))
    size, seconds = sum(item.bytes for item in items), sum(item.seconds for item in items)
    forwards = sum(item.forwards for item in items)
    if as_json:
        value = {"items": [asdict(item) for item in items], "bytes": size, "seconds": seconds}
        _print_json(value | {"forwards": forwards, "in_store": len(resolved.runs) - len(missing)})
    else:
        table = Table(box=None)
        for name in ("to do", "what", "number", "teacher forwards", "MB", "time"):
            table.add_column(name, justify="left" if name in ("to do", "what") else "right")
        for item in items:
            megabytes = f"{item.bytes / 1e6:.1f}" if item.bytes else ""
            images = f"{item.forwards:,}" if item.forwards else ""
            row = (item.kind, item.label, str(item.count), images, megabytes, clock(item.seconds))
            table.add_row(*row)
        if items:
            _console().print(table)
        click.echo(
            f"{len(resolved.runs) - len(missing)} of {len(resolved.runs)} students are in the "
            f"store; to do: {forwards:,} teacher forwards, {size / 1e6:.1f} MB of cache, about "
            f"{clock(seconds)} on workers like this machine"
        )
    check_room(place, size)


@main.command()
@_EXPERIMENT
@_OVERRIDES
@_STORE
@_JSON
@_speaking
def precompute(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Train the teachers and fill the caches, but train no student."""
    from raykd.launch.work import carry_out
    from raykd.progress import clock

    resolved, place, teller = _resolved(experiment, overrides, store)
    with teller.showing():
        outcome = carry_out(resolved, place, teller, students=False)
    teller.say(f"done in {clock(outcome.seconds)}")
    if as_json:
        _print_json({"made": outcome.made, "reused": outcome.reused, "seconds": outcome.seconds})


@main.command()
@click.argument(
    "what", type=click.Choice(["teachers", "caches", "students", "methods", "models", "datasets"])
)
@_STORE
@_JSON
@_speaking
def show(what: str, store: Path, as_json: bool) -> None:
    """List what is in the store, or what an experiment can name."""
    from raykd.catalogue import catalogue
    from raykd.store import Store

    rows = catalogue(what, Store(store))
    if as_json:
        _print_json(rows)
        return
    if not rows:
        click.echo(f"no {what} in {Store(store).root}")
        return
    table = Table(box=None)
    for name in rows[0]:
        number = isinstance(rows[0][name], int | float)
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    _console().print(table)


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path), required=False)
@_OVERRIDES
@_STORE
@click.option("--rows", default=256, show_default=True, help="Random rows to ask of the teacher.")
@_JSON
@_speaking
def verify(
    experiment: Path | None, overrides: tuple[str, ...], store: Path, rows: int, as_json: bool
) -> None:
    """Check every shard's checksum, and random rows against the live teacher.

    Looks at the caches of EXPERIMENT, or at every cache of the store.
    """
    from raykd.catalogue import verify_caches
    from raykd.plan import plan as plan_of
    from raykd.store import Store

    chosen = None
    if experiment is not None:
        resolved, _, _ = _resolved(experiment, overrides, store)
        chosen = [job.run for job in plan_of(resolved.runs).caches]
    results, errors = verify_caches(Store(store), chosen, rows)
    if as_json:
        _print_json({"caches": results, "errors": [str(error) for error in errors]})
    else:
        for line in results:
            click.echo(
                f"{line['fingerprint']}  {line['teacher']}, {line['split']}: {line['views']} "
                f"views, {line['shards']} shards whole; {line['rows']} rows asked again: largest "
                f"difference {line['difference']:.2g}, mean KL {line['kl']:.2g} nats, same answer "
                f"{100 * line['agreement']:.2f} %"
            )
        for error in errors:
            click.echo(f"error: {error}", err=True)
        if not results and not errors:
            click.echo(f"no caches in {Store(store).root}")
    if errors:
        sys.exit(errors[0].code)


@main.command(name="report")
@_EXPERIMENT
@_OVERRIDES
@_STORE
@click.option("--output", type=click.Path(path_type=Path), help="The page; reports/ of the store.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@_JSON
@_speaking
def report_command(
    experiment: Path,
    overrides: tuple[str, ...],
    store: Path,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Write the page of an experiment's results, finished or not, and print its table."""
    from raykd import report

    resolved, place, teller = _resolved(experiment, overrides, store)
    summary = report.gather(place, resolved)
    page = output or place.root / "reports" / f"{resolved.name}.html"
    report.write_page(summary, page)
    if as_json:
        _print_json(report.to_json(summary) | {"page": str(page)})
    elif markdown:
        click.echo(report.to_markdown(summary))
    else:
        _console().print(report.console_table(summary))
    teller.say(f"page: {page}")


@main.command()
@click.option("--output", type=click.Path(path_type=Path), help="A file; standard output if not.")
@_speaking
def schema(output: Path | None) -> None:
    """Write the JSON schema by which editors complete and check experiment files."""
    from raykd.experiment import ExperimentFile
    from raykd.store import write_atomic

    value = ExperimentFile.model_json_schema()
    value["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    text = json.dumps(value, indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomic(output, text.encode())


def _resolved(path: Path, overrides: tuple[str, ...], store: Path) -> tuple[Any, Any, Any]:
    """The experiment with its data read, its store, and someone to say what happens."""
    from raykd.experiment import load, resolve
    from raykd.progress import Teller
    from raykd.store import Store

    teller, place = Teller(), Store(store)
    experiment = load(path, overrides)
    return resolve(experiment, place, teller.say), place, teller


def _print_recipe(experiment: Any, teller: Any) -> None:
    """What will be run, in full: the first student, and which keys the others differ in."""
    import yaml

    runs = [run.plain() for run in experiment.runs]
    if not runs:
        raise ConfigError("experiment.grid: no student is left")
    teller.say(f"{experiment.name}: {len(runs)} students; the first one's recipe:")
    text = yaml.safe_dump(runs[0], sort_keys=False, default_flow_style=None, width=100)
    teller.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True, style="dim")


def _console() -> Console:
    """Standard output, for tables: as wide as the terminal, and wide in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
