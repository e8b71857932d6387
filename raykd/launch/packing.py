"""Ray workers, on any number of nodes, that make the shards of a pack."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from raykd.core.errors import WorkFailed
from raykd.data.packing.packer import Packed, Packing, Part
from raykd.launch import cluster_watch
from raykd.launch.pool import DIED

_RETRIES = 3  # of a shard whose worker died


class Packer:
    """One process that makes one shard after another."""

    def __init__(self, packing: Packing) -> None:
        torch.set_num_threads(1)
        self._packing = packing

    def make(self, part: Part, there: Sequence[str]) -> Packed:
        """One shard."""
        return self._packing.make(part, there)


def make_on_ray(
    packing: Packing, there: Mapping[Part, Sequence[str]], workers: int
) -> Iterator[Packed]:
    """Every shard as it is finished, made by that many workers of the cluster that is connected.

    The shard of a worker that died is given to a new one, up to three times. Raises what a
    worker raised, and `WorkFailed` where they die.
    """
    waiting, running = deque(packing.parts), {}
    deaths: Counter[Part] = Counter()
    shared = ray.put(packing)  # which may be large: where a million images lie
    kind = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(Packer)
    idle: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                part, worker = waiting.popleft(), idle.pop() if idle else kind.remote(shared)
                running[worker.make.remote(part, there.get(part, ()))] = (part, worker)
            [reference], _ = ray.wait([*running], num_returns=1)
            part, worker = running.pop(reference)
            try:
                packed = ray.get(reference)
            except RayTaskError as error:
                raise error.cause or error from None
            except DIED as error:
                cluster_watch.check()
                deaths[part] += 1
                if deaths[part] > _RETRIES:
                    raise WorkFailed(
                        f"shard {part.number} of {part.split}: {deaths[part]} workers died of it "
                        f"({error}); what was finished is kept, and the same command goes on"
                    ) from error
                waiting.appendleft(part)
            else:
                idle.append(worker)
                yield packed
    finally:
        for worker in [*idle, *(worker for _, worker in running.values())]:
            ray.kill(worker)
