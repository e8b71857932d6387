"""One teacher or student on several workers, with Ray Train."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
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

from raykd.config.scale import Scale, Workers, least, most
from raykd.core.errors import RaykdError, WorkFailed
from raykd.core.record import fingerprint
from raykd.launch import cluster_watch
from raykd.launch.capacity import check_fit, share
from raykd.launch.orphaned_groups import removing_orphans
from raykd.launch.preemption import NodeNotice
from raykd.launch.prometheus import Prometheus
from raykd.launch.sweep import tune_storage
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking import run_log
from raykd.tracking.jsonl import numbers
from raykd.tracking.logger import Metrics, RunLog
from raykd.training.checkpointing import Journal
from raykd.training.hosts.fsdp import group_host
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import train

# A group that may shrink does so when it could not start for this many seconds.
_SHRINKS_AFTER = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
_PAUSE_SECONDS = 1.0  # before a run is begun again: its workers end with their controller
REPORT_SECONDS = 5.0
_GROWS_AFTER = 30.0  # seconds between two looks for more room


def fit(
    store: Store,
    run: Training,
    workers: Workers,
    scale: Scale,
    callbacks: Sequence[UserCallback] = (),
    names: tuple[str, str | None] = ("", None),
) -> None:
    """Train on `workers` workers (gloo on CPUs, nccl on GPUs) and finish the artefact.

    The workers' checkpoints are the run's own file in the store, the same that one process
    writes: a worker that dies restarts the group from the last one, up to `scale.max_failures`
    times (a node that is taken away after a notice is no failure), and so does the loss of any
    other process of Ray Train. A run whose driver died goes on when it is called again. Between two
    numbers of workers, the group has as many as the cluster has room for, and starts again where
    that changes. Its metrics go by the `names` of the experiment and the trial.

    Raises what a worker raised where that is ours, `WorkFailed` where too much was lost.
    """
    store.stand()
    check_fit(scale, least(workers), fingerprint(run))
    if least(workers) < most(workers):
        os.environ.setdefault(*_SHRINKS_AFTER)
    own = share(scale)
    ours = store.root / "ray"  # Ray's own notes on the run; the results are not in there
    trainer = functools.partial(
        TorchTrainer,
        _worker,
        train_loop_config={
            "store": store.url,
            "recipe": run,
            "scale": scale,
            "names": names,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in own,
            resources_per_worker=own,
            elastic_resize_monitor_interval_s=_GROWS_AFTER,
        ),
        run_config=RunConfig(
            name=fingerprint(run),
            **tune_storage.storage(tune_storage.place(store, ours)),
            failure_config=FailureConfig(max_failures=scale.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[*callbacks],
        ),
    )
    for left in reversed(range(scale.max_failures + 1)):
        again = left < scale.max_failures
        try:
            with _own_interrupts(), removing_orphans() if again else contextlib.nullcontext():
                trainer().fit()
            break
        except (TrainingFailedError, RayError) as error:
            cluster_watch.check()
            if not (left and _lost(error)):
                raise _cause(error, run) from error
        # What a controller that was killed wrote last may be half of a file.
        store.remove(ours / fingerprint(run))
        time.sleep(_PAUSE_SECONDS)
    store.remove(ours / fingerprint(run))


def _lost(error: Exception) -> bool:
    """True for the loss of a process on which Ray Train gives up and another try may help.

    It counts and tries again what workers fail with in training, and when a group is set up. But
    the death of a worker to which the training is being handed ends the run (its controller's call
    of `run_train_fn`, Ray 2.60), and so do the controller's own and those of its helpers.
    """
    if isinstance(error, ControllerError):
        error = error.controller_failure
    if isinstance(error, RayTaskError):  # in a worker, which may miss another one
        return not isinstance(error.cause, RaykdError)
    return isinstance(error, RayError)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Have Ctrl-C mean afterwards what it meant before.

    Train sets a handler of its own and leaves it there (Ray 2.60), which also keeps its
    controller's process alive as long as this one.
    """
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if here else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _worker(config: dict[str, Any]) -> None:
    """What every worker runs."""
    scale: Scale = config["scale"]
    torch.set_num_threads(max(1, int(scale.cpus)))
    keep_freed_memory()
    store, run = Store(config["store"], scale.local_gb), config["recipe"]
    store.stand(made=True)
    journal = Journal.of(store, store.path(run), scale)
    device = ray.train.torch.get_device()
    rank = ray.train.get_context().get_world_rank()
    experiment, trial = config["names"]
    every = (Prometheus(experiment, trial, rank), TrainReports(device, rank))
    log = RunLog(run, every) if rank else run_log(store, run, scale.track, *every)
    with contextlib.closing(NodeNotice()) as notice:
        train(store, run, group_host(journal, device, log, scale, notice))


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
        """Nothing to report."""

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
        """Nothing: Train reads no result."""


def _cause(error: Exception, run: Training) -> RaykdError:
    """What the user should hear: the workers' own error where it is one of ours."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for reason in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(reason, RaykdError):
                return reason
    first = next(iter(failures.values()), getattr(error, "controller_failure", error))
    if isinstance(first, RayTaskError) and isinstance(first.cause, RaykdError):
        return first.cause
    text = (str(first).strip() or "no message").splitlines()
    said = f"{type(first).__name__}: {text[0] if isinstance(first, RayActorError) else text[-1]}"
    return WorkFailed(
        f"{run.model} ({fingerprint(run)}): the workers failed too often, at last with: {said}; "
        "run the same command again to go on from the last checkpoint"
    )
