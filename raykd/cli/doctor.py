"""`raykd doctor`: prints one line per check of the cluster and the store."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from raykd.cli.output import echo
from raykd.cli.shared import experiment_command, print_json, resolved_experiment
from raykd.core.errors import NoRoom


@click.command()
@experiment_command(required=False)
@click.option(
    "--address", help="Ray cluster to join; else the experiment's, $RAY_ADDRESS, or one here."
)
def doctor(
    experiment: Path | None,
    overrides: tuple[str, ...],
    store: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Check the cluster and the store before a run: a line per check.

    With an EXPERIMENT, also whether its caches and its workers fit. Ends with status 6 where a
    check failed. Without a cluster, this machine is checked.
    """
    # Set before Ray is imported, which else prints a notice about usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from raykd.config.scale import Scale
    from raykd.launch.doctor import examine
    from raykd.storage.store import Store

    resolved, storage = None, Store(store)
    if experiment is not None:
        resolved, storage, _ = resolved_experiment(experiment, overrides, store)
    scale = Scale() if resolved is None else resolved.scale
    if address is not None:
        scale = scale.model_copy(update={"address": address})
    findings = examine(storage, scale, resolved)
    failed = [finding for finding in findings if finding.status == "failed"]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "ok": not failed})
    else:
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            echo(f"{finding.status:<8} {finding.check}: {finding.message}{advice}")
    if failed:
        sys.exit(NoRoom.code)
