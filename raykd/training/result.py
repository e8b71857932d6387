"""The result of a finished run: its last and best epoch, size, speed and hardware."""

import copy
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raykd.data.dataset import open_split
from raykd.models.flops import flop_counter
from raykd.models.staged import Staged, parameter_count
from raykd.recipes import StudentRun, TeacherRun, Training
from raykd.storage.store import Store
from raykd.tasks import Task
from raykd.training.checkpointing import RESULT, Tested, read_result
from raykd.training.compiled import compiled_as
from raykd.training.finite import is_finite
from raykd.training.hosts.base import Host
from raykd.training.loop import Metrics

_PASSES = 20  # forwards at most; their median is the latency
_MEASURE_SECONDS = 0.2  # a slow network is measured no longer than this


def result_of(
    run: StudentRun, parts: Sequence[nn.Module], history: list[Metrics], host: Host
) -> dict[str, Any]:
    """The result of a run: last and best epoch apart, and the size of its `parts` together.

    The first part is the network, whose forward is measured; helpers alone have none.
    """
    last = history[-1]
    best = _best(run.task, history)
    speeds = sorted(m["images_per_second"] for m in history if "images_per_second" in m)
    flops, latency = None, None
    if isinstance(parts[0], Staged):
        flops, latency = forward_cost(parts[0], run.model, run.data.resolved().size)
    return {
        "model": run.model,
        "parameters": sum(parameter_count(part) for part in parts),
        "flops": flops,
        "latency_ms": latency,
        "epochs": len(history),
        "last": last,
        "best": best,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,  # median of the epochs
        "seconds": sum(metrics["seconds"] for metrics in history),
        "workers": host.world,
        "accumulate": host.scale.accumulate,
        "compile": compiled_as(run.method, host.scale.compile),
        "shard": host.scale.shard if host.world > 1 else None,
        "hardware": hardware(host.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def teacher_said(store: Store, teacher: TeacherRun) -> tuple[str, str | None]:
    """A finished teacher's top-1 on its test images as a sentence, and a warning near chance.

    Chance is the share of the most frequent class: what one answer for all images reaches.
    """
    store.pull(store.path(teacher) / RESULT)
    last = read_result(store.path(teacher), Tested)["last"]
    if "top1" not in last:
        return (
            f"the given teacher {teacher.model} has embeddings, and no logits of these classes",
            None,
        )
    share = last["top1"] / 100
    targets = open_split(store, teacher.data, "test").targets
    count = len(targets)
    chance = int(torch.bincount(targets).max()) / count
    kind = "given" if teacher.is_given else "fine-tuned" if teacher.fine_tune else "trained"
    sentence = (
        f"the {kind} teacher {teacher.model} is right on {100 * share:.1f} % of {count:,} test "
        f"images; chance is {100 * chance:.1f} %"
    )
    near = near_chance(chance, count)
    if near is None or share > near:
        return sentence, None
    causes = "its classes have another order than the images', or it wants another size or "
    causes += "normalisation of images than run.teacher.data has"
    if not teacher.is_given:
        causes = "too few epochs, an unsuitable rate (run.teacher.optim), or wrong labels"
    return sentence, (
        f"warning: up to {100 * near:.1f} % is near chance, and students will learn little from "
        f"the {kind} teacher {teacher.model}; likely causes: {causes}"
    )


def near_chance(chance: float, count: int) -> float | None:
    """The share of `count` images up to which a teacher's is near that of chance, p.

    Three standard deviations of guessing, sqrt(p (1 - p) / n), above it, or a twentieth of what is
    left to 1, whichever is more; None where even 1 is as near, so that so few images do not tell.
    """
    near = chance + max(3 * math.sqrt(chance * (1 - chance) / count), (1 - chance) / 20)
    return near if near < 1 else None


def training_seconds(store: Store, run: Training, result: Mapping[str, Any]) -> float:
    """Seconds of a training with that `result`, and of the stages before it that are there."""
    stages = run.stages() if isinstance(run, StudentRun) else (run,)
    before = (
        read_result(store.path(stage)) for stage in stages if stage != run and store.has(stage)
    )
    return sum((stage["seconds"] for stage in before), result["seconds"])


def _best(task: Task, history: Sequence[Metrics]) -> Metrics:
    """The first epoch with the best score of those that were evaluated: on validation images, where
    there are some.

    Epochs of what is not evaluated, such as preludes, have their loss alone. An epoch with a number
    that is not finite is the worst.
    """
    scores = [task.score(metrics) for metrics in history]
    if max(scores) == -math.inf:
        scores = [-metrics.get("loss", 0.0) for metrics in history]
    worth = [s if is_finite(m) else -math.inf for s, m in zip(scores, history, strict=True)]
    return history[worth.index(max(worth))]


def forward_cost(network: Staged, model: str, size: tuple[int, int]) -> tuple[int, float]:
    """FLOPs and milliseconds of the forward of one image of `size` (H, W), where the network is.

    `model` is its name. The time is the median of some passes in evaluation mode, in float32.
    Leaves the network and the generators as they were.
    """
    # The counter's hooks take what is viewed of a parameter for something to differentiate.
    network = copy.deepcopy(network).eval().requires_grad_(False)
    weight = next(network.parameters())
    pixels = torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device)
    pixels = pixels.to(memory_format=torch.channels_last)
    times: list[float] = []
    with torch.no_grad():
        network(pixels)
        with flop_counter(model) as counter:
            network(pixels)
        until = time.monotonic() + _MEASURE_SECONDS
        while len(times) < _PASSES and (not times or time.monotonic() < until):
            _wait(weight.device)
            started = time.perf_counter()
            network(pixels)
            _wait(weight.device)
            times.append(time.perf_counter() - started)
    return counter.get_total_flops(), 1000 * statistics.median(times)


def _wait(device: torch.device) -> None:
    """Wait for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> str:
    """The processor or GPU that a run was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({len(names) or 1} cores)"
