"""The commands that work: run, sweep, plan, precompute."""

from pathlib import Path

import click

from raykd.cli.shared import (
    experiment_command,
    print_json,
    print_recipe,
    print_report,
    published,
    resolved_experiment,
)
from raykd.core.errors import ConfigError


@click.command()
@experiment_command()
def run(experiment: Path, overrides: tuple[str, ...], store: str, as_json: bool) -> None:
    """Train teachers and students, and write a table and a page."""
    from raykd import report
    from raykd.launch.executor import execute
    from raykd.tracking.console import clock

    resolved, storage, teller = resolved_experiment(experiment, overrides, store)
    if resolved.space is not None and resolved.space.search:
        raise ConfigError("experiment.search: what is drawn is for a sweep; use `raykd sweep`")
    print_recipe(resolved, teller)
    with teller.showing():
        outcome = execute(resolved, storage, teller)
    summary = report.gather(storage, resolved)
    page = published(summary, storage, teller)
    reused = {kind: count for kind, count in outcome.reused.items() if count}
    if reused:
        counts = ", ".join(f"{count} {kind}" for kind, count in reused.items())
        teller.say(f"reused from {storage.shown}: {counts}")
    note = "" if page is None else f"; page: {page}"
    teller.say(f"done in {clock(outcome.seconds)}{note}")
    work = {"made": outcome.made, "reused": outcome.reused, "seconds": outcome.seconds}
    print_report(summary, as_json=as_json, work=work, page=page and str(page))


@click.command()
@experiment_command()
@click.option("--fresh", is_flag=True, help="Forget the trials of before; what they made stays.")
def sweep(
    experiment: Path, overrides: tuple[str, ...], store: str, fresh: bool, as_json: bool
) -> None:
    """Go through a grid or a search with Ray Tune, and write a table and a page.

    The same command goes on where a sweep was stopped.
    """
    from raykd import report
    from raykd.launch.sweep.driver import raise_failures
    from raykd.launch.sweep.driver import sweep as sweep_of
    from raykd.tracking.console import clock

    resolved, storage, teller = resolved_experiment(experiment, overrides, store)
    print_recipe(resolved, teller)
    swept = sweep_of(resolved, storage, teller, fresh=fresh)
    summary = report.gather_sweep(storage, resolved)
    page = published(summary, storage, teller)
    states = ("finished", "stopped", "failed")
    counts = ", ".join(f"{swept.count(state)} {state}" for state in states if swept.count(state))
    teller.say(f"{len(swept.sheets)} trials in {clock(swept.seconds)}: {counts}")
    note = "" if page is None else f"page: {page}; "
    teller.say(f"{note}table: {swept.results}")
    files = {"results": str(swept.results), "tensorboard": storage.where(swept.tensorboard)}
    print_report(summary, as_json=as_json, page=page and str(page), **files)
    raise_failures(swept)


@click.command()
@experiment_command()
@click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    help="A file that describes machines, as cluster/machines.yaml does: time and cost on those.",
)
def plan(
    experiment: Path, overrides: tuple[str, ...], store: str, cluster: Path | None, as_json: bool
) -> None:
    """Say what a run would compute, write and take, before anything runs.

    On workers like this machine, or on a --cluster.
    """
    from raykd.cli.plan import print_forecast, print_plan
    from raykd.planning.forecast import read_cluster

    machines = None if cluster is None else read_cluster(cluster)
    resolved, storage, _ = resolved_experiment(experiment, overrides, store)
    if machines is None:
        print_plan(resolved, storage, as_json=as_json)
    else:
        print_forecast(resolved, storage, machines, as_json=as_json)


@click.command()
@experiment_command()
def precompute(experiment: Path, overrides: tuple[str, ...], store: str, as_json: bool) -> None:
    """Train the teachers and fill the caches, but train no student."""
    from raykd.launch.executor import execute
    from raykd.tracking.console import clock

    resolved, storage, teller = resolved_experiment(experiment, overrides, store)
    with teller.showing():
        outcome = execute(resolved, storage, teller, students=False)
    teller.say(f"done in {clock(outcome.seconds)}")
    if as_json:
        print_json({"made": outcome.made, "reused": outcome.reused, "seconds": outcome.seconds})
