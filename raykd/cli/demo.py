"""The command that shows raykd without images of one's own: demo."""

from pathlib import Path

import click

from raykd.cli.output import echo
from raykd.cli.run import run
from raykd.cli.shared import JSON, OVERRIDES, STORE

QUICKSTART = Path(__file__).with_name("quickstart.yaml")


@click.command()
@OVERRIDES
@STORE
@JSON
@click.pass_context
def demo(context: click.Context, overrides: tuple[str, ...], store: str, as_json: bool) -> None:
    """Run the quickstart: a teacher of handwritten digits and fifteen students.

    The digits come with scikit-learn, so nothing is downloaded.
    """
    echo(
        f"running {QUICKSTART}: a teacher and fifteen students of three methods; `raykd run` takes "
        "such a file, and `raykd explain run` says what its keys mean",
        err=True,
    )
    options = {"overrides": overrides, "store": store, "as_json": as_json, "recipe": False}
    context.invoke(run, experiment=QUICKSTART, **options)
