"""Parts that commands share: arguments, errors, loading an experiment, printing."""

import functools
import json
import os
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raykd.cli.output import echo
from raykd.core.errors import ConfigError, NoRoom, RaykdError, Unreachable
from raykd.core.safe_names import printable_lines
from raykd.core.shutdown import STATUS, Terminated, leave, terminable

if TYPE_CHECKING:  # torch takes seconds to import, and `raykd --help` none
    from raykd.config.experiment import Experiment
    from raykd.report import Report
    from raykd.storage.store import Store
    from raykd.tracking.console import Teller


OVERRIDES = click.argument("overrides", nargs=-1)
STORE = click.option(
    "--store",
    metavar="DIRECTORY",
    default=lambda: os.environ.get("RAYKD_STORE", "raykd-store"),
    show_default="$RAYKD_STORE or ./raykd-store",
    help="Folder of all artefacts, or its URL (s3://, gs://); every worker must reach it.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with our errors as one message and an exit status of their own."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with terminable():
                command(*args, **options)
        except RaykdError as error:
            echo(f"error: {error}", err=True)
            sys.exit(error.code)
        except KeyboardInterrupt as stop:
            echo("stopped; what was finished is kept, and the same command goes on", err=True)
            if not isinstance(stop, Terminated):
                sys.exit(130)
            leave()
            sys.exit(STATUS)

    return run


def experiment_command(*, required: bool = True) -> Callable[[Callable[..., None]], Any]:
    """Decorator: arguments `experiment`, `overrides`, `store`, `as_json`; errors as messages."""
    experiment = click.argument("experiment", type=click.Path(path_type=Path), required=required)

    def decorate(command: Callable[..., None]) -> Any:
        return experiment(OVERRIDES(STORE(JSON(speaking(command)))))

    return decorate


def resolved_experiment(
    path: Path, overrides: tuple[str, ...], store: str
) -> tuple["Experiment", "Store", "Teller"]:
    """The experiment with its data read, its store, and a console for progress."""
    from raykd.config.experiment import load
    from raykd.config.resolve import resolve
    from raykd.storage.store import Store
    from raykd.tracking.console import Teller

    experiment = load(path, overrides)
    teller, storage = Teller(), Store(store, experiment.scale.local_gb)
    return resolve(experiment, storage, teller.say), storage, teller


def published(summary: "Report", store: "Store", teller: "Teller") -> Path | None:
    """Write the page of a report into the store; its path, or None after a message with the reason.

    A store that can only be read has its tables all the same.
    """
    from raykd.report import publish

    try:
        return publish(summary, store)
    except (NoRoom, Unreachable) as error:
        teller.say(f"no page is written: {error}")
        return None


def print_recipe(experiment: "Experiment", teller: "Teller") -> None:
    """Print the experiment in full: the first student, and the keys in which the others differ."""
    import yaml

    from raykd.config.experiment import basis

    runs = [basis(run).plain() for run in experiment.runs]
    if not runs:
        raise ConfigError("experiment.grid: no student is left")
    teller.say(f"{experiment.name}: {len(runs)} students; the first one's recipe:")
    text = yaml.safe_dump(runs[0], sort_keys=False, default_flow_style=None, width=100)
    text = printable_lines(text.rstrip())
    teller.console.print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


def wide_console() -> Console:
    """Standard output, for tables: as wide as the terminal, and wide in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_rows(rows: list[dict[str, Any]], text_columns: Container[str] | None = None) -> None:
    """Rows of the same columns as a table on standard output.

    `text_columns` are aligned to the left; None: those whose first value is no number.
    """
    table = Table(box=None)
    for name in rows[0]:
        # The first value that is there, if any is.
        value = next((row[name] for row in rows if row[name] is not None), 0)
        number = (
            isinstance(value, int | float) if text_columns is None else name not in text_columns
        )
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        texts = (printable_lines("" if value is None else str(value)) for value in row.values())
        table.add_row(*map(Text, texts))  # as it is, not as rich's markup
    wide_console().print(table)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2))


def print_report(summary: "Report", *, as_json: bool, **more: Any) -> None:
    """Print a report's table, or with `as_json` all of it beside `more` keys."""
    from raykd import report

    if as_json:
        print_json(report.to_json(summary) | more)
    else:
        wide_console().print(report.console_table(summary))
