"""What fits a Ray cluster, now or when it has grown."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray.autoscaler import sdk

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom
from raykd.launch import cluster_watch as watch
from raykd.launch.preemption import draining

_LOOK_SECONDS = 1.0
_WATCH_SECONDS = 5.0
_ROUNDING = 1e-6  # of shares such as a third of a GPU


def fitting(scale: Scale) -> int:
    """How many one-worker students fit the cluster at a time; 0 where not even one does."""
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
    """GPUs of each worker: as `scale.gpus` says, else one where the cluster has any."""
    if scale.gpus is not None:
        return scale.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def share(scale: Scale) -> dict[str, float]:
    """What each worker holds, as Ray counts it."""
    gpus = gpus_per_worker(scale)
    return {"CPU": scale.cpus} | ({"GPU": gpus} if gpus else {})


def check_fit(scale: Scale, workers: int, what: str) -> None:
    """Raise `NoRoom` where `workers` workers do not fit the cluster as it is."""
    if workers > fitting(scale):
        watch.check()
        raise NoRoom(
            f"{what} wants {workers} workers with {wanted(scale)} each, the cluster has "
            f"{there()}; lower scale.workers, or let it wait for nodes with scale.wait_minutes"
        )


def await_room(
    scale: Scale, workers: int, what: str, say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until `workers` workers fit the cluster, for nodes that an autoscaler has to add.

    Raises `NoRoom` where they do not, `scale.wait_minutes` later.
    """
    until = time.monotonic() + 60 * scale.wait_minutes
    if fitting(scale) < workers and scale.wait_minutes:
        say(
            f"{what} wants {workers} workers with {wanted(scale)} each; the cluster has {there()}. "
            f"Waiting for nodes, up to {scale.wait_minutes:g} min"
        )
        try:
            while fitting(scale) < workers and time.monotonic() < until:
                # Again and again: there is one request of the cluster, which others overwrite.
                sdk.request_resources(bundles=[share(scale)] * workers)
                time.sleep(_LOOK_SECONDS)
        finally:
            sdk.request_resources(bundles=[])
    check_fit(scale, workers, what)


@contextlib.contextmanager
def told_of_losses(
    scale: Scale, workers: int, what: str, say: Callable[[str], None]
) -> Iterator[None]:
    """A region in which it is said when nodes were lost so that `workers` fit no longer.

    Ray Train waits for them without end and says nothing.
    """
    over = threading.Event()

    def watch() -> None:
        since: float | None = None
        while not over.wait(_WATCH_SECONDS):
            try:
                lacking = fitting(scale) < workers
            except Exception:  # the head does not answer: its own error is on its way
                continue
            if lacking and since is None:
                since = time.monotonic()
                say(
                    f"{what}: nodes were lost; it wants {workers} workers with {wanted(scale)} "
                    f"each, the cluster has {there()}. It goes on from its checkpoint when there "
                    "is room again; Ctrl-C stops it, and the same command goes on later"
                )
            elif not lacking and since is not None:
                say(f"{what}: there is room again, after {time.monotonic() - since:.0f} s")
                since = None

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def wanted(scale: Scale) -> str:
    """What each worker needs, in words."""
    return f"{scale.cpus:g} CPUs and {gpus_per_worker(scale):g} GPUs"


def there() -> str:
    """What the cluster has, in words."""
    resources = ray.cluster_resources()
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
