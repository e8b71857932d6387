"""Capacity of a Ray cluster: how many workers fit, now or once it has grown."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import ray
from ray.autoscaler import sdk

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom
from raykd.core.futures import repeating
from raykd.launch import cluster_watch
from raykd.launch.preemption import draining

_LOOK_SECONDS = 1.0
_WATCH_SECONDS = 5.0
_ROUNDING = 1e-6  # for shares such as a third of a GPU


def fitting(scale: Scale) -> int:
    """The number of workers that fit the cluster's nodes; 0 where not even one does."""
    gpus, going = gpus_per_worker(scale), draining()
    return sum(
        min(
            int(node["Resources"].get("CPU", 0) / scale.cpus + _ROUNDING),
            int(node["Resources"].get("GPU", 0) / gpus + _ROUNDING) if gpus else sys.maxsize,
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in going
    )


def gpus_per_worker(scale: Scale) -> float:
    """GPUs of each worker: `scale.gpus`, else one where the cluster has any."""
    if scale.gpus is not None:
        return scale.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def resources_per_worker(scale: Scale) -> dict[str, float]:
    """Resources that each worker reserves, by Ray's names."""
    gpus = gpus_per_worker(scale)
    return {"CPU": scale.cpus} | ({"GPU": gpus} if gpus else {})


def check_fit(scale: Scale, workers: int, label: str) -> None:
    """Raise `NoRoom` where `workers` workers do not fit the cluster as it is."""
    if workers > fitting(scale):
        cluster_watch.check()
        raise NoRoom(
            f"{_demand(scale, workers, label)}; lower scale.workers, or let it wait for nodes with "
            "scale.wait_minutes"
        )


def await_room(
    scale: Scale, workers: int, label: str, say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until `workers` workers fit the cluster, for nodes that an autoscaler has to add.

    Raises `NoRoom` where they do not, `scale.wait_minutes` later.
    """
    until = time.monotonic() + 60 * scale.wait_minutes
    if fitting(scale) < workers and scale.wait_minutes:
        say(
            f"{_demand(scale, workers, label)}. Waiting for nodes, up to {scale.wait_minutes:g} min"
        )
        bundles = [resources_per_worker(scale)] * workers
        try:
            while fitting(scale) < workers and time.monotonic() < until:
                # Repeated, because a cluster has one request, which other drivers overwrite.
                sdk.request_resources(bundles=bundles)
                time.sleep(_LOOK_SECONDS)
        finally:
            sdk.request_resources(bundles=[])
    check_fit(scale, workers, label)


@contextlib.contextmanager
def reporting_losses(
    scale: Scale, workers: int, label: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Context manager: prints a message when lost nodes leave too little room for `workers`.

    Ray Train waits for new nodes forever and prints nothing.
    """
    since: float | None = None

    def look() -> None:
        nonlocal since
        try:
            is_lacking = fitting(scale) < workers
        except Exception:  # the head does not answer: reported elsewhere
            return
        if is_lacking and since is None:
            since = time.monotonic()
            say(
                f"{label}: nodes were lost; {_demand(scale, workers, 'it')}. It goes on from "
                "its checkpoint when there is room again; Ctrl-C stops it, and the same "
                "command goes on later"
            )
        elif not is_lacking and since is not None:
            say(f"{label}: there is room again, after {time.monotonic() - since:.0f} s")
            since = None

    with repeating(look, _WATCH_SECONDS, join=False):
        yield


def worker_needs(scale: Scale) -> str:
    """The resources of a worker, for messages."""
    return f"{scale.cpus:g} CPUs and {gpus_per_worker(scale):g} GPUs"


def _demand(scale: Scale, workers: int, label: str) -> str:
    """The resources that work wants and those that the cluster has, for messages."""
    resources = ray.cluster_resources()
    return (
        f"{label} wants {workers} workers with {worker_needs(scale)} each, the cluster has "
        f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
    )
