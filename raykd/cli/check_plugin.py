"""The command that holds plugins to the laws of raykd's own methods and networks: check-plugin."""

import sys

import click

from raykd.cli.shared import JSON, print_json, print_rows, speaking


@click.command(name="check-plugin")
@click.argument("plugin", metavar="FILE|PACKAGE")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Side of the images that its networks are run on.",
)
@JSON
@speaking
def check_plugin(plugin: str, size: int, as_json: bool) -> None:
    """Check the methods and networks of a plugin by the laws that raykd's own keep.

    Methods run with their defaults on two small networks: losses are finite and reach the student
    and not the teacher, they read what they declare, from a cache as from a live teacher, in any
    order of the batch. Networks are built, split into stages, run and trained for a step. Exit
    status 1 where something does not hold.
    """
    from raykd.core.plugins import load
    from raykd.register.contract import check_plugin as check

    rows = [*check(load(plugin), size)]
    if as_json:
        print_json(rows)
    else:
        print_rows([row | {"sound": "yes" if row["sound"] else "no"} for row in rows])
    if not all(row["sound"] for row in rows):
        sys.exit(1)
