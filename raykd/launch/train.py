"""Training of a teacher, prelude or student on several workers, with Ray Train."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray._private import state
from ray.core.generated.gcs_pb2 import (
    PlacementGroupTableData,  # pyright: ignore[reportAttributeAccessIssue] - made at run time
)
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raykd.config.scale import Scale, Workers, least, most
from raykd.core.errors import RaykdError, WorkFailed
from raykd.core.futures import repeating
from raykd.core.plugins import loaded
from raykd.core.record import fingerprint
from raykd.launch import cluster_watch
from raykd.launch.capacity import check_fit, resources_per_worker
from raykd.launch.preemption import NodeNotice
from raykd.launch.prometheus import Prometheus
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking import run_log
from raykd.tracking.jsonl import numbers
from raykd.tracking.logger import NO_LABELS, Labels, Metrics, RunLog
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.fsdp import group_host
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import train

# An elastic group shrinks when it could not start for this many seconds.
_SHRINKS_AFTER = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
_PAUSE_SECONDS = 1.0  # before another try: workers end with their controller
T = TypeVar("T")
REPORT_SECONDS = 5.0  # between two reports to Ray Train
_GROWS_AFTER = 30.0  # seconds between two looks for more room
_ORPHANS_SECONDS = 2.0  # between two looks for placement groups of dead controllers


def fit(
    store: Store,
    run: Training,
    workers: Workers,
    scale: Scale,
    callbacks: Sequence[UserCallback] = (),
    labels: Labels = NO_LABELS,
) -> None:
    """Train on `workers` workers (gloo on CPUs, nccl on GPUs) and finish the artefact.

    Checkpoints are the run's own file in the store, as with one process. A worker that dies
    restarts the group from the last one, up to `scale.max_failures` times (a node that is taken
    away after a notice is no failure), and so does the death of any other process of Ray Train. A
    run whose driver died goes on when it is called again. With [least, most] workers the group has
    as many as the cluster has room for, and restarts where that changes.

    labels: the experiment and the trial, for metrics.

    Raises a worker's own `RaykdError`, `WorkFailed` where too much was lost.
    """
    store.ensure_root()
    check_fit(scale, least(workers), fingerprint(run))
    if least(workers) < most(workers):
        os.environ.setdefault(*_SHRINKS_AFTER)
    resources = resources_per_worker(scale)
    folder = store.root / "ray"  # Ray's own files about the run; the results are elsewhere
    trainer = functools.partial(
        TorchTrainer,
        _train_func,
        train_loop_config={
            "plugins": loaded(),  # unpickling loads them in each worker
            "store": store.url,
            "run": run,
            "scale": scale,
            "labels": labels,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=_GROWS_AFTER,
        ),
        run_config=RunConfig(
            name=fingerprint(run),
            **ray_storage(store, folder),
            failure_config=FailureConfig(max_failures=scale.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[*callbacks],
        ),
    )
    for retries in reversed(range(scale.max_failures + 1)):
        is_repeated = retries < scale.max_failures  # the previous try's controller is dead
        orphans = _removing_orphans() if is_repeated else contextlib.nullcontext()
        try:
            # Ray Train's handler of Ctrl-C would keep its controller alive as long as this process.
            with cluster_watch.keeping_handler(signal.SIGINT), orphans:
                trainer().fit()
            break
        except (TrainingFailedError, RayError) as error:
            cluster_watch.check()
            if not (retries and _is_loss(error)):
                raise _cause(error, run) from error
        # A controller that was killed may have left half of a file.
        store.remove(folder / fingerprint(run))
        time.sleep(_PAUSE_SECONDS)
    store.remove(folder / fingerprint(run))


def ray_storage(store: Store, folder: Path) -> dict[str, Any]:
    """Arguments of Ray's `RunConfig` for a folder of the store, which every node can write."""
    if store.node_cache is None:
        return {"storage_path": str(folder)}
    files, path = store.node_cache.remote.at(store.node_cache.name(folder))
    return {"storage_path": path, "storage_filesystem": files}


def _is_loss(error: Exception) -> bool:
    """True for the loss of a process on which Ray Train gives up and another try may help.

    Ray Train counts and retries what workers fail with in training, and when a group is set up.
    But the death of a worker to which the training is being handed ends the run (its controller's
    call of `run_train_fn`, Ray 2.60), and so do the controller's own and those of its helpers.
    """
    if isinstance(error, ControllerError):
        error = error.controller_failure
    if isinstance(error, RayTaskError):  # in a worker, which may miss another one
        return not isinstance(error.cause, RaykdError)
    return isinstance(error, RayError)


@contextlib.contextmanager
def _removing_orphans() -> Iterator[None]:
    """Context manager: remove placement groups of dead controllers, whose death takes seconds.

    A group that a controller reserved stays until the driver ends: Ray frees it when both are
    gone. Ray Train's own cleaner knows a group only once its workers have begun, and is stopped by
    a controller that fails in between (Ray 2.60). The processors that such a group holds are
    missing when a run is tried again.
    """

    def look() -> None:
        with contextlib.suppress(Exception):  # the head does not answer: reported elsewhere
            _remove_orphans()

    with repeating(look, _ORPHANS_SECONDS):
        yield


def _remove_orphans() -> None:
    """Remove this job's placement groups whose creator is dead.

    The public tables of placement groups do not say who made them (Ray 2.60).
    """
    job = ray.get_runtime_context().get_job_id()
    for row in state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(row)
        is_removed = group.state == PlacementGroupTableData.REMOVED
        if group.creator_actor_dead and not is_removed and group.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _train_func(config: dict[str, Any]) -> None:
    """Train; runs on every worker."""
    scale: Scale = config["scale"]
    torch.set_num_threads(max(1, int(scale.cpus)))
    keep_freed_memory()
    store = Store(config["store"], scale.local_gb)
    store.ensure_root(made=True)
    train_in_group(store, config["run"], scale, Labels(*config["labels"]))


def train_in_group(store: Store, run: Training, scale: Scale, labels: Labels) -> None:
    """Train on this worker of a group that Ray Train has set up; every worker of it calls this.

    Each epoch's numbers are reported to Ray Train. The artefact is finished by rank 0.
    """
    checkpoints = Checkpoints.of(store, store.path(run), scale)
    device = ray.train.torch.get_device()
    rank = ray.train.get_context().get_world_rank()
    loggers = (Prometheus(*labels, rank), TrainReports(device, rank))
    if rank:
        log = RunLog(run, loggers)
    else:
        log = run_log(store, run, scale.track, *loggers, labels=labels)
    with contextlib.closing(NodeNotice()) as notice:
        train(store, run, group_host(checkpoints, device, log, scale, notice))


def on_first_worker(work: Callable[[], T]) -> T:
    """The value of some work that the first worker of a group does before the others do it."""
    first = ray.train.get_context().get_world_rank() == 0
    value = work() if first else None
    dist.barrier()
    return work() if value is None else value


class TrainReports:
    """Logger that reports to Ray Train; every worker of a group has one.

    Workers report together. A report waits for Train's controller (Ray 2.60), so an epoch that ends
    less than `REPORT_SECONDS` after the last report is left out, unless it is the last.
    """

    def __init__(self, device: torch.device, rank: int) -> None:
        self._device = device
        self._rank = rank
        self._reported = time.monotonic()

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Report nothing: training has not begun."""

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Report an epoch's numbers, where rank 0 finds it time."""
        last = metrics["epoch"] + 1 == run.optim.epochs
        due = last or time.monotonic() - self._reported >= REPORT_SECONDS
        due_on_first = torch.tensor(int(due and self._rank == 0), device=self._device)
        dist.all_reduce(due_on_first)
        if due_on_first:
            ray.train.report(numbers(metrics))
            self._reported = time.monotonic()

    def end(self, run: Training, result: Metrics | None) -> None:
        """Report nothing: Ray Train reads no result."""


def _cause(error: Exception, run: Training) -> RaykdError:
    """The error for the user: a worker's own `RaykdError` where there is one."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for reason in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(reason, RaykdError):
                return reason
    first = next(iter(failures.values()), getattr(error, "controller_failure", error))
    if isinstance(first, RayTaskError) and isinstance(first.cause, RaykdError):
        return first.cause
    lines = (str(first).strip() or "no message").splitlines()
    line = lines[0] if isinstance(first, RayActorError) else lines[-1]
    return WorkFailed(
        f"{run.model} ({fingerprint(run)}): the workers failed too often, the last with: "
        f"{type(first).__name__}: {line}; run the same command again to go on from the last "
        "checkpoint"
    )
