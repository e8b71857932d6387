"""The commands that work: run, sweep, plan, precompute."""

from pathlib import Path

import click

from raykd.cli.shared import experiment_command, print_json, print_report
from raykd.core.errors import ConfigError


@click.command()
@experiment_command()
def run(
    experiment: Path, overrides: tuple[str, ...], store: str, as_json: bool, recipe: bool = True
) -> None:
    """Train teachers and students, and write a table and a page."""
    from raykd.api import work
    from raykd.api.experiment import load

    done = work.run(load(experiment, *overrides), store, recipe=recipe)
    made = {"made": done.made, "reused": done.reused, "seconds": done.seconds}
    print_report(done.report, as_json=as_json, work=made, page=done.page and str(done.page))


@click.command()
@experiment_command()
@click.option("--fresh", is_flag=True, help="Forget the trials of before; what they made stays.")
def sweep(
    experiment: Path, overrides: tuple[str, ...], store: str, fresh: bool, as_json: bool
) -> None:
    """Go through a grid or a search with Ray Tune, and write a table and a page.

    The same command goes on where a sweep was stopped.
    """
    from raykd.api import work
    from raykd.api.experiment import load
    from raykd.launch.sweep.driver import raise_failures

    done, swept = work.swept_results(load(experiment, *overrides), store, fresh=fresh)
    logs = done.store.where(swept.tensorboard)
    files = {"results": str(swept.results), "tensorboard": logs}
    print_report(done.report, as_json=as_json, page=done.page and str(done.page), **files)
    raise_failures(swept)


@click.command()
@experiment_command()
@click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    help="A file that describes machines, as cluster/machines.yaml does: time and cost on those.",
)
@click.option(
    "--rehearse",
    "rehearsed",
    is_flag=True,
    help="Time float32, bfloat16, compilation and batches here, and numbers of views.",
)
@click.option("--apply", "applied", is_flag=True, help="Rehearse, and write it into the file.")
@click.option("--batch", is_flag=True, help="With --apply: the students' batch, too.")
def plan(
    experiment: Path,
    overrides: tuple[str, ...],
    store: str,
    cluster: Path | None,
    as_json: bool,
    rehearsed: bool,
    applied: bool,
    batch: bool,
) -> None:
    """Say what a run would compute, write and take, before anything runs.

    On workers like this machine, or on a --cluster.
    """
    from raykd.api import work
    from raykd.api.experiment import load
    from raykd.cli.plan import print_forecast, print_plan, said_of_change
    from raykd.config.file_edit import edit_file
    from raykd.planning.forecast import read_cluster
    from raykd.tracking.console import Terminal

    rehearsed = rehearsed or applied
    if cluster is not None and rehearsed:
        raise ConfigError("--rehearse: it is of this machine; leave --cluster out")
    if batch and not applied:
        raise ConfigError("--batch: it is written into the file; expected --apply beside it")
    machines = None if cluster is None else read_cluster(cluster)
    planned = work.plan(load(experiment, *overrides), store)
    if machines is not None:
        print_forecast(planned, machines, as_json=as_json)
        return
    said = Terminal().say
    rehearsal = planned.rehearse(said) if rehearsed else None
    print_plan(planned, as_json=as_json, rehearsal=rehearsal)
    if applied and rehearsal is not None:
        changes = rehearsal.choices | (rehearsal.batch if batch else {})
        edit_file(experiment, changes, overrides)
        said(said_of_change(experiment, changes))


@click.command()
@experiment_command()
def precompute(experiment: Path, overrides: tuple[str, ...], store: str, as_json: bool) -> None:
    """Train the teachers and fill the caches, but train no student."""
    from raykd.api import work
    from raykd.api.experiment import load

    done, _ = work.precomputed(load(experiment, *overrides), store)
    if as_json:
        print_json({"made": done.made, "reused": done.reused, "seconds": done.seconds})
