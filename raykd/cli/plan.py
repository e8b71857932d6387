"""`raykd plan`: tables of what a run would compute, write and take."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykd.api.plan import Remaining
from raykd.cli.output import echo
from raykd.cli.shared import print_json, print_rows
from raykd.planning.forecast import Line, forecast, totals
from raykd.planning.rehearsal import LEAST, Rehearsal, Schedule, Way
from raykd.planning.scaling import Cluster
from raykd.tracking.console import clock


def print_plan(
    work: Remaining, *, as_json: bool = False, rehearsal: Rehearsal | None = None
) -> None:
    """Print the remaining work of an experiment, and a rehearsal of it.

    Raises `NoRoom` where its caches do not fit on the disk.
    """
    if as_json:
        value = {"items": [asdict(item) for item in work.items], "seconds": work.seconds}
        rehearsed = {"rehearsal": rehearsal and asdict(rehearsal)}
        print_json(value | {"cost": None, "cluster": None} | _whole(work) | rehearsed)
    else:
        echo(str(work))
        if rehearsal is not None:
            _print_rehearsal(rehearsal)
    work.check_room()


def said_of_change(path: Path, changes: Mapping[str, Any]) -> str:
    """The sentence about keys that were written into a file."""
    if not changes:
        return f"{path} stays as it is"
    results = [key for key in changes if key.startswith("run.")]
    more = f"; results follow from {' and '.join(results)}, and have new names" * bool(results)
    return f"{path}: {_keys(changes)} written{more}"


def _print_rehearsal(rehearsal: Rehearsal) -> None:
    """Print the tables of a rehearsal, and what is fastest."""
    words = ("what", "network", "precision", "compiled", "views", "student", "note")
    if rehearsal.ways:
        print_rows([_way_row(way) for way in rehearsal.ways], words)
    if rehearsal.schedules:
        print_rows([_schedule_row(schedule) for schedule in rehearsal.schedules], words)
    if rehearsal.choices:
        echo(f"fastest here: {_keys(rehearsal.choices)}; --apply writes that into the file")
    else:
        echo(f"nothing is faster here by {100 * LEAST:.0f} % or more than what the file has")
    if rehearsal.batch:
        echo(
            f"{_keys(rehearsal.batch)} would be faster, and changes what students learn; --apply "
            "--batch writes it, too, with the learning rate as it is"
        )


def _keys(values: Mapping[str, Any]) -> str:
    """Keys with their values, as a file has them."""
    return ", ".join(f"{key}: {json.dumps(value).strip(chr(34))}" for key, value in values.items())


def _way_row(way: Way) -> dict[str, Any]:
    """A network in one way, as a row of the table."""
    return {
        "what": {"cache": "teacher's answers"}.get(way.kind, f"steps of the {way.kind}"),
        "network": way.network,
        "precision": way.precision,
        "compiled": "yes" if way.compiled is True else way.compiled or "no",
        "batch": way.batch,
        "images/s": way.speed.removesuffix(" images/s") if way.images_per_second else "",
        "compile s": f"{way.compile_seconds:.0f}" if way.compile_seconds else "",
        "all of it": "" if way.seconds is None else clock(way.seconds),
        "note": way.note,
    }


def _schedule_row(schedule: Schedule) -> dict[str, Any]:
    """The cost of a number of views, as a row of the table."""
    return {
        "student": schedule.student,
        "views": schedule.views,
        "teacher's passes": schedule.passes,
        "one student": clock(schedule.seconds),
        "students": schedule.students,
        "each of them": clock(schedule.shared_seconds),
        "over live": f"{schedule.over_live:.2f}",
    }


def print_forecast(work: Remaining, cluster: Cluster, *, as_json: bool = False) -> None:
    """Print the remaining work of an experiment, with its time and cost on a cluster."""
    lines = forecast(work.experiment, work.store, work.plan, cluster)
    sums, in_store = totals(lines, cluster), work.total - work.missing
    if as_json:
        value = {"items": [asdict(line) for line in lines], **sums, "cluster": cluster.plain()}
        print_json(value | _whole(work) | {"rehearsal": None})
        return
    if lines:
        print_rows([_forecast_row(line) for line in lines], ("to do", "what", "limit"))
    speed = f"rate {cluster.rate:g} times this machine" if cluster.rate else ""
    speed = speed or f"{cluster.utilisation:g} of {cluster.tflops:g} Tflop/s"
    echo(
        f"{in_store} of {work.total} students are in the store; the rest takes about "
        f"{clock(sums['seconds'])} and {sums['cost']:.2f} {cluster.currency} on {cluster.nodes} "
        f"nodes with {cluster.gpus} GPUs, if a GPU reaches {speed}"
    )


def _whole(work: Remaining) -> dict[str, Any]:
    """The keys that the JSON has with and without a cluster."""
    return {
        "bytes": work.bytes,
        "forwards": work.forwards,
        "given_teachers": [asdict(teacher) for teacher in work.given_teachers],
        "in_store": work.total - work.missing,
        "advice": work.advice,
    }


def _forecast_row(line: Line) -> dict[str, Any]:
    """Some remaining work of one kind on a cluster, as a row of the table."""
    return {
        "to do": line.kind,
        "what": line.label,
        "number": line.count,
        "GPUs": line.workers,
        "at once": line.at_once,
        "GB read": f"{line.read / 1e9:.2f}" if line.read else "",
        "GB written": f"{line.written / 1e9:.2f}" if line.written else "",
        "time": clock(line.seconds),
        "cost": f"{line.cost:.2f}",
        "limit": line.limit,
    }
