"""The command line.

Exit status: 0 done, 1 an unexpected failure, 2 the experiment or the command cannot be read,
3 images cannot be used, 4 a cache is of another recipe, 5 a file is damaged or missing, 6 not
enough disk or processors, 7 workers failed, 130 stopped by Ctrl-C. What was finished is kept in
every case, and the same command goes on from there.
"""

import json
import sys
from pathlib import Path

import click
from rich.table import Table

from raykd import __version__
from raykd.command import (
    EXPERIMENT,
    JSON,
    OVERRIDES,
    STORE,
    print_json,
    print_recipe,
    print_rows,
    resolved_experiment,
    speaking,
    wide_console,
)

SHOWN = ["teachers", "caches", "preludes", "students", "methods", "models", "datasets"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raykd")
def main() -> None:
    """Distil image classifiers from a cache of the teacher's outputs, on Ray.

    An EXPERIMENT is a YAML file; OVERRIDES change single keys of it: run.seed=3, scale.workers=4,
    data.path=/data/images.
    """


@main.command()
@EXPERIMENT
@OVERRIDES
@STORE
@JSON
@speaking
def run(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Train teachers and students, and write a table and a page."""
    from raykd import report
    from raykd.launch.work import carry_out
    from raykd.progress import clock

    resolved, place, teller = resolved_experiment(experiment, overrides, store)
    print_recipe(resolved, teller)
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
        print_json(report.to_json(summary) | {"work": work, "page": str(page)})
    else:
        wide_console().print(report.console_table(summary))


@main.command()
@EXPERIMENT
@OVERRIDES
@STORE
@JSON
@speaking
def plan(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Say what a run would compute, write and take, before anything runs."""
    from dataclasses import asdict, replace

    from raykd.engine.caches import check_room
    from raykd.engine.estimate import estimate
    from raykd.plan import plan as plan_of
    from raykd.progress import clock

    resolved, place, _ = resolved_experiment(experiment, overrides, store)
    missing = [student for student in resolved.runs if not place.has(student)]
    work = plan_of(missing)
    todo = [teacher for teacher in work.teachers if not place.has(teacher)]
    before = [prelude for prelude in work.preludes if not place.has(prelude)]
    work = replace(work, teachers=tuple(todo), preludes=tuple(before))
    items = estimate(resolved, place, work)
    size, seconds = sum(item.bytes for item in items), sum(item.seconds for item in items)
    forwards = sum(item.forwards for item in items)
    if as_json:
        value = {"items": [asdict(item) for item in items], "bytes": size, "seconds": seconds}
        print_json(value | {"forwards": forwards, "in_store": len(resolved.runs) - len(missing)})
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
            wide_console().print(table)
        click.echo(
            f"{len(resolved.runs) - len(missing)} of {len(resolved.runs)} students are in the "
            f"store; to do: {forwards:,} teacher forwards, {size / 1e6:.1f} MB of cache, about "
            f"{clock(seconds)} on workers like this machine"
        )
    check_room(place, size)


@main.command()
@EXPERIMENT
@OVERRIDES
@STORE
@JSON
@speaking
def precompute(experiment: Path, overrides: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Train the teachers and fill the caches, but train no student."""
    from raykd.launch.work import carry_out
    from raykd.progress import clock

    resolved, place, teller = resolved_experiment(experiment, overrides, store)
    with teller.showing():
        outcome = carry_out(resolved, place, teller, students=False)
    teller.say(f"done in {clock(outcome.seconds)}")
    if as_json:
        print_json({"made": outcome.made, "reused": outcome.reused, "seconds": outcome.seconds})


@main.command()
@click.argument("what", type=click.Choice(SHOWN))
@STORE
@JSON
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table in Markdown.")
@speaking
def show(what: str, store: Path, as_json: bool, as_markdown: bool) -> None:
    """List what is in the store, or what an experiment can name."""
    from raykd.catalogue import catalogue, markdown
    from raykd.store import Store

    rows = catalogue(what, Store(store))
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"no {what} in {Store(store).root}")
    elif as_markdown:
        click.echo(markdown(rows))
    else:
        print_rows(rows)


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path), required=False)
@OVERRIDES
@STORE
@click.option("--rows", default=256, show_default=True, help="Random rows to ask of the teacher.")
@JSON
@speaking
def verify(
    experiment: Path | None, overrides: tuple[str, ...], store: Path, rows: int, as_json: bool
) -> None:
    """Check every shard's checksum, and random rows against the live teacher.

    Looks at the caches of EXPERIMENT, or at every cache of the store.
    """
    from raykd.catalogue import verify_caches
    from raykd.engine.prepare import serving
    from raykd.plan import plan as plan_of
    from raykd.store import Store

    chosen = None
    if experiment is not None:
        resolved, place, _ = resolved_experiment(experiment, overrides, store)
        jobs = plan_of(resolved.runs).caches
        chosen = list(dict.fromkeys(serving(place, job.run, job.views) for job in jobs))
    results, errors = verify_caches(Store(store), chosen, rows)
    if as_json:
        print_json({"caches": results, "errors": [str(error) for error in errors]})
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
@EXPERIMENT
@OVERRIDES
@STORE
@click.option("--output", type=click.Path(path_type=Path), help="The page; reports/ of the store.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@JSON
@speaking
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

    resolved, place, teller = resolved_experiment(experiment, overrides, store)
    summary = report.gather(place, resolved)
    page = output or place.root / "reports" / f"{resolved.name}.html"
    report.write_page(summary, page)
    if as_json:
        print_json(report.to_json(summary) | {"page": str(page)})
    elif markdown:
        click.echo(report.to_markdown(summary))
    else:
        wide_console().print(report.console_table(summary))
    teller.say(f"page: {page}")


@main.command()
@click.option("--output", type=click.Path(path_type=Path), help="A file; standard output if not.")
@speaking
def schema(output: Path | None) -> None:
    """Write the JSON schema by which editors complete and check experiment files."""
    from raykd.experiment import schema as schema_of
    from raykd.store import write_atomic

    text = json.dumps(schema_of(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomic(output, text.encode())
