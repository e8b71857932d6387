"""Several workers on this machine without Ray: real processes in a real gloo group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_group(world: int, folder: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `world` new processes that form a group."""
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    multiprocessing.spawn(_join, (world, str(meeting), function, arguments), nprocs=world)


def _join(
    rank: int, world: int, meeting: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        function(rank, *arguments)
        dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()
