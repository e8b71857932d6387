"""The commands that look at what there is: show, verify, report, schema."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from raykd.cli.output import echo
from raykd.cli.shared import (
    JSON,
    PLUGIN,
    STORE,
    experiment_command,
    print_json,
    print_report,
    print_rows,
    resolved_experiment,
    speaking,
)
from raykd.core.errors import ConfigError
from raykd.core.words import counted
from raykd.storage.atomic import is_there, write_atomic

SHOWN = ["teachers", "caches", "preludes", "students", "searches"]
SHOWN += ["methods", "presets", "tasks", "models", "datasets"]


@click.command()
@click.argument("what", type=click.Choice(SHOWN))
@STORE
@PLUGIN
@JSON
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table in Markdown.")
@speaking
def show(what: str, store: str, as_json: bool, as_markdown: bool) -> None:
    """List what is in the store, or what an experiment can name."""
    from raykd.core.text_table import markdown

    rows = _rows(what, store, raw=as_json)
    if as_json:
        print_json(rows)
    elif not rows:
        from raykd.api import work

        echo(f"no {what} in {work.store_of(store).shown}")
    elif as_markdown:
        echo(markdown(rows))
    else:
        print_rows(rows)


def _rows(what: str, store: str, *, raw: bool) -> list[dict[str, Any]]:
    """The rows of a listing, as data or in words; those of methods and networks are remembered."""
    from raykd.core.plugins import loaded
    from raykd.storage.remembered import code, remembered

    def listed() -> list[dict[str, Any]]:
        from raykd.api import work
        from raykd.report.catalogue import catalogue

        return work.show(what, store) if raw else catalogue(what, work.store_of(store))

    if what not in ("methods", "models") or loaded():
        return listed()
    return remembered(f"{what}-data" if raw else what, code(), listed)


@click.command()
@experiment_command(required=False)
@PLUGIN
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Random rows to ask of the teacher.",
)
def verify(
    experiment: Path | None, overrides: tuple[str, ...], store: str, rows: int, as_json: bool
) -> None:
    """Check every checksum, and random rows of caches against the live teacher.

    Looks at every artefact of the store, or at those of EXPERIMENT: recipes, results, metrics,
    weights, images, searches, caches.
    """
    from raykd.planning.plan import plan as plan_of
    from raykd.report.catalogue import verify_caches
    from raykd.storage.store import Store
    from raykd.training.inputs import serving
    from raykd.training.integrity import audit, audit_of
    from raykd.training.route_results import plannable

    caches = None
    storage = Store(store)
    if storage.node_cache is None and not is_there(storage.root):
        raise ConfigError(f"there is no store at {storage.root}; name one with --store")
    if experiment is None:
        artefacts = audit(storage)
    else:
        resolved, searched, _ = resolved_experiment(experiment, overrides, store)
        students, measured = plannable(searched, resolved.runs)
        work = plan_of(students, caches=measured)
        trained = (*work.teachers, *work.preludes, *work.students, *resolved.searches())
        artefacts = audit_of(searched, trained)
        caches = list(dict.fromkeys(serving(searched, job.run, job.views) for job in work.caches))
    results, errors = verify_caches(storage, caches, rows)
    # A damaged teacher is a fault of its own, and again of each of its caches.
    errors = list({str(error): error for error in (*artefacts.faults, *errors)}.values())
    if as_json:
        summary = {"caches": results, "errors": [str(error) for error in errors]}
        print_json(summary | {"sound": artefacts.sound})
    else:
        for line in results:
            _print_cache(line)
        sound = ", ".join(counted(count, kind) for kind, count in artefacts.sound.items() if count)
        if sound:
            echo(f"as they were written: {sound}")
        for error in errors:
            echo(f"error: {error}", err=True)
        if not results and not errors:
            echo(f"no caches in {storage.shown}")
    if errors:
        sys.exit(errors[0].code)


def _print_cache(line: dict[str, Any]) -> None:
    """Print the line of a cache."""
    head = f"{line['fingerprint']}  {line['teacher']}, {line['split']}: "
    if line["building"] is not None:
        echo(head + line["building"])
        return
    answers = ""
    if line["kl"] is not None:  # embeddings alone answer nothing
        answers = f", mean KL {line['kl']:.2g} nats, same answer {100 * line['agreement']:.2f} %"
    if line["lost"] is not None:
        answers += f", {line['lost']:.2%} of the variance lost"
    echo(
        f"{head}{line['views']} views, {line['shards']} shards whole; {line['rows']} rows asked "
        f"again: largest difference {line['difference']:.2g}{answers}"
    )


@click.command(name="report")
@experiment_command()
@click.option("--output", type=click.Path(path_type=Path), help="The page; reports/ of the store.")
@click.option("--baseline", metavar="LABEL", help="The line to compare with; else label_only.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a row per run as CSV.")
def report_command(
    experiment: Path,
    overrides: tuple[str, ...],
    store: str,
    output: Path | None,
    baseline: str | None,
    markdown: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Write the page of an experiment's results, finished or not, and print its table."""
    from raykd import report
    from raykd.api import work
    from raykd.api.experiment import load

    done = work.results(load(experiment, *overrides), store, baseline=baseline, output=output)
    if as_csv and not as_json:
        echo(report.to_csv(done.report).removesuffix("\n"))
    elif markdown and not as_json:
        echo(report.to_markdown(done.report))
    else:
        print_report(done.report, as_json=as_json, page=done.page and str(done.page))
    if done.page is not None:
        echo(f"page: {done.page}", err=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="A file; standard output if not.")
@speaking
def schema(output: Path | None) -> None:
    """Write the JSON schema by which editors complete and check experiment files."""
    from raykd.config.schema import schema as schema_of

    text = json.dumps(schema_of(), indent=2) + "\n"
    if output is None:
        echo(text.removesuffix("\n"))
    else:
        write_atomic(output, text.encode())
