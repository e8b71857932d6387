"""`raykd plan`: tables of what a run would compute, write and take."""

from dataclasses import asdict
from typing import Any

from raykd.api.plan import Remaining
from raykd.cli.output import echo
from raykd.cli.shared import print_json, print_rows
from raykd.planning.forecast import Line, forecast, totals
from raykd.planning.scaling import Cluster
from raykd.tracking.console import clock


def print_plan(work: Remaining, *, as_json: bool = False) -> None:
    """Print the remaining work of an experiment.

    Raises `NoRoom` where its caches do not fit on the disk.
    """
    if as_json:
        value = {"items": [asdict(item) for item in work.items], "seconds": work.seconds}
        print_json(value | {"cost": None, "cluster": None} | _whole(work))
    else:
        echo(str(work))
    work.check_room()


def print_forecast(work: Remaining, cluster: Cluster, *, as_json: bool = False) -> None:
    """Print the remaining work of an experiment, with its time and cost on a cluster."""
    lines = forecast(work.experiment, work.store, work.plan, cluster)
    sums, in_store = totals(lines), work.total - work.missing
    if as_json:
        value = {"items": [asdict(line) for line in lines], **sums, "cluster": cluster.plain()}
        print_json(value | _whole(work))
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
