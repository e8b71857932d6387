"""`raykd plan`: tables of what a run would compute, write and take."""

from dataclasses import asdict, replace
from typing import Any

from raykd.cli.output import echo
from raykd.cli.shared import print_json, print_rows
from raykd.config.experiment import Experiment
from raykd.planning.estimate import Item, estimate
from raykd.planning.forecast import Line, forecast, totals
from raykd.planning.given_teachers import given_teachers
from raykd.planning.plan import Plan
from raykd.planning.plan import plan as plan_of
from raykd.planning.preflight import preflight
from raykd.planning.scaling import Cluster
from raykd.storage.store import Store
from raykd.tracking.console import clock
from raykd.training.cache_builder import check_room
from raykd.training.route_results import so_far


def print_plan(experiment: Experiment, store: Store, *, as_json: bool = False) -> None:
    """Print the remaining work of an experiment whose data were read.

    Raises `NoRoom` where its caches do not fit on the disk.
    """
    work, missing, total = _missing(experiment, store)
    items = estimate(experiment, store, work)
    size, seconds = sum(item.bytes for item in items), sum(item.seconds for item in items)
    forwards = sum(item.forwards for item in items)
    given = given_teachers(experiment, store)
    if as_json:
        value = {"items": [asdict(item) for item in items], "bytes": size, "seconds": seconds}
        value |= {"given_teachers": [asdict(teacher) for teacher in given]}
        print_json(value | {"forwards": forwards, "in_store": total - missing})
    else:
        for teacher in given:
            echo(f"given teacher {teacher.sentence()}")
        if items:
            print_rows([_row(item) for item in items], ("to do", "what"))
        echo(
            f"{total - missing} of {total} students are in the store; "
            f"to do: {forwards:,} teacher forwards, {size / 1e6:.1f} MB of cache, about "
            f"{clock(seconds)} on workers like this machine"
        )
        if experiment.space is not None and experiment.space.search:
            draws = experiment.space.sweep.samples
            echo(f"these are one of each; a sweep draws {draws}, with values that vary")
        for search in experiment.searches():
            echo(
                f"beside these, a search for anchors of {search.student.method.label} "
                f"{search.student.model}: a training like the first for each anchor that it "
                f"chooses, up to {len(search.candidates())}"
            )
    check_room(store, size)


def print_forecast(
    experiment: Experiment, store: Store, cluster: Cluster, *, as_json: bool = False
) -> None:
    """Print the remaining work of an experiment, with its time and cost on a cluster."""
    work, missing, total = _missing(experiment, store)
    lines = forecast(experiment, store, work, cluster)
    sums = totals(lines)
    if as_json:
        value = {"cluster": cluster.plain(), "items": [asdict(line) for line in lines]}
        print_json(value | {**sums, "in_store": total - missing})
        return
    if lines:
        print_rows([_forecast_row(line) for line in lines], ("to do", "what", "limit"))
    speed = f"rate {cluster.rate:g} times this machine" if cluster.rate else ""
    speed = speed or f"{cluster.utilisation:g} of {cluster.tflops:g} Tflop/s"
    echo(
        f"{total - missing} of {total} students are in the store; the rest takes about "
        f"{clock(sums['seconds'])} and {sums['cost']:.2f} {cluster.currency} on {cluster.nodes} "
        f"nodes with {cluster.gpus} GPUs, if a GPU reaches {speed}"
    )


def _missing(experiment: Experiment, store: Store) -> tuple[Plan, int, int]:
    """The remaining work, the number of missing students, and that of all students."""
    preflight(experiment, store)
    students, measured = so_far(store, experiment.runs)
    missing = [student for student in students if not store.has(student)]
    work = plan_of(students, store.has, measured)
    todo = [teacher for teacher in work.teachers if not store.has(teacher)]
    before = [prelude for prelude in work.preludes if not store.has(prelude)]
    work = replace(work, teachers=tuple(todo), preludes=tuple(before))
    return work, len(missing), len(students)


def _row(item: Item) -> dict[str, Any]:
    """Some remaining work of one kind, as a row of the table."""
    return {
        "to do": item.kind,
        "what": item.label,
        "number": item.count,
        "teacher forwards": f"{item.forwards:,}" if item.forwards else "",
        "MB": f"{item.bytes / 1e6:.1f}" if item.bytes else "",
        "time": clock(item.seconds),
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
