"""What a finished run is remembered by."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raykd.engine.host import Host
from raykd.engine.loop import Metrics
from raykd.models.staged import parameter_count
from raykd.recipes import StudentRun


def result_of(
    run: StudentRun, parts: Sequence[nn.Module], history: list[Metrics], host: Host
) -> dict[str, Any]:
    """The result of a run: last and best epoch apart, and the size of its `parts` together."""
    last = history[-1]
    # What was not evaluated, as before a method's own training, has its loss alone.
    best = max(history, key=lambda metrics: metrics.get("top1", -metrics.get("loss", 0.0)))
    speeds = sorted(m["images_per_second"] for m in history if "images_per_second" in m)
    return {
        "model": run.model,
        "parameters": sum(parameter_count(part) for part in parts),
        "epochs": len(history),
        "last": last,
        "best": best,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,  # median of the epochs
        "seconds": sum(metrics["seconds"] for metrics in history),
        "workers": host.world,
        "hardware": hardware(host.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def hardware(device: torch.device) -> str:
    """The processor or GPU that a run was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({len(names) or 1} cores)"
