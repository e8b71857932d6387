"""Parts that commands share: arguments, errors, loading an experiment, printing."""

import atexit
import functools
import gc
import importlib
import json
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from raykd.cli.output import echo
from raykd.core.errors import ConfigError, RaykdError
from raykd.core.shutdown import STATUS, Terminated, leave, terminable
from raykd.storage.place import default_place

if TYPE_CHECKING:  # torch takes seconds to import, and `raykd --help` none
    from raykd.config.experiment import Experiment
    from raykd.report import Report
    from raykd.storage.store import Store
    from raykd.tracking.console import Terminal


OVERRIDES = click.argument("overrides", nargs=-1)
STORE = click.option(
    "--store",
    metavar="DIRECTORY",
    default=default_place,
    show_default="$RAYKD_STORE or ./raykd-store",
    help="Folder of all artefacts, or its URL (s3://, gs://); every worker must reach it.",
)
PLUGIN = click.option(
    "--plugin",
    "plugins",
    metavar="FILE|PACKAGE",
    multiple=True,
    help="A plugin that stored networks were made with; it is executed. May be repeated.",
)
_SCHEMA = "schema"  # name of the schema among what is remembered
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


_STOPPED = "stopped; what was finished is kept, and the same command goes on"
# Commands of which nothing is kept when they are stopped; scripts have names of their own.
_LOOKING = (
    "plan", "show", "report_command", "verify", "schema", "explain", "doctor", "predict", "export",
    "check_plugin",
)  # fmt: skip


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with our errors as one message and an exit status of their own.

    The plugins of `PLUGIN` are loaded before it begins.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with terminable():
                load_plugins(options.pop("plugins", ()))
                command(*args, **options)
        except RaykdError as error:
            echo(f"error: {error}", err=True)
            sys.exit(error.code)
        except KeyboardInterrupt as stop:
            echo("stopped" if command.__name__ in _LOOKING else _STOPPED, err=True)
            if not isinstance(stop, Terminated):
                sys.exit(130)
            leave()
            sys.exit(STATUS)

    return run


def load_plugins(named: Sequence[str]) -> None:
    """Load the plugins that a command line names."""
    from raykd.core.plugins import load

    for name in named:
        try:
            load(name)
        except ConfigError as error:
            raise ConfigError(f"--plugin: {error}") from error


def experiment_command(*, required: bool = True) -> Callable[[Callable[..., None]], Any]:
    """Decorator: arguments `experiment`, `overrides`, `store`, `as_json`; errors as messages."""
    experiment = click.argument("experiment", type=click.Path(path_type=Path), required=required)

    def decorate(command: Callable[..., None]) -> Any:
        @functools.wraps(command)
        def checked(*, experiment: Path | None, **options: Any) -> None:
            if experiment is not None:
                _check_tree(experiment, options["overrides"])
                _import()
            try:
                command(experiment=experiment, **options)
            except ConfigError:
                _remember_schema()
                raise

        return experiment(OVERRIDES(STORE(JSON(speaking(checked)))))

    return decorate


def _import() -> None:
    """Import what commands need, torch included, after a line that says so.

    What imports make stays for good, so the garbage collector passes it over, then and later.
    """
    if "torch" not in sys.modules:
        echo("importing torch ...", err=True)
        gc.disable()
        importlib.import_module("raykd.api.work")
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries report what is left as leaks
        gc.enable()


def _check_tree(path: Path, overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for mistakes that can be told before torch is imported for seconds."""
    from raykd.config.tree import check
    from raykd.storage.remembered import code, recall

    check(path, overrides, recall(_SCHEMA, code()))


def _remember_schema() -> None:
    """Keep what `_check_tree` needs to know of the keys; torch is imported already."""
    from raykd.config.schema import schema
    from raykd.core.plugins import loaded
    from raykd.storage.remembered import code, remembered

    if not loaded():
        remembered(_SCHEMA, code(), schema)


def resolved_experiment(
    path: Path, overrides: tuple[str, ...], store: str
) -> tuple["Experiment", "Store", "Terminal"]:
    """The experiment with its data read, its store, and a console for progress."""
    from raykd.api import work
    from raykd.api.experiment import load

    return work.prepared(load(path, *overrides), store)


def wide_console() -> Console:
    """Standard output, for tables: as wide as the terminal, and wide in a file or a pipe."""
    from raykd.core.text_table import WIDTH

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_rows(rows: list[dict[str, Any]], text_columns: Container[str] | None = None) -> None:
    """Print rows of the same columns as a table; see `core.text_table.table_of`."""
    from raykd.core.text_table import table_of

    wide_console().print(table_of(rows, text_columns))


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2))


def print_report(summary: "Report", *, as_json: bool, **more: Any) -> None:
    """Print a report's table, or with `as_json` all of it.

    `more`: what the command knows beside it; the JSON has the same keys after every command.
    """
    from raykd import report

    if as_json:
        beside = dict.fromkeys(("work", "page", "results", "tensorboard"))
        print_json(report.to_json(summary) | beside | more)
    else:
        wide_console().print(report.console_table(summary))
