"""Placement groups of Ray Train controllers that are dead, given back to the cluster.

A group that a controller reserved stays until the driver ends: Ray frees it when both are gone. Ray
Train's own cleaner knows a group only once its workers have begun, and is stopped by a controller
that fails in between (Ray 2.60). Processors that are held so are missing when a run is tried again.
"""

import contextlib
import threading
from collections.abc import Iterator

import ray
from ray._private import state
from ray.core.generated.gcs_pb2 import (
    PlacementGroupTableData,  # pyright: ignore[reportAttributeAccessIssue] - made at run time
)
from ray.util.placement_group import PlacementGroup, remove_placement_group

_LOOK_SECONDS = 2.0


def remove_orphans() -> int:
    """Remove this job's placement groups whose creator is dead; how many there were.

    The public tables of placement groups do not say who made them (Ray 2.60).
    """
    job = ray.get_runtime_context().get_job_id()
    removed = 0
    for row in state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(row)
        gone = group.state == PlacementGroupTableData.REMOVED
        if group.creator_actor_dead and not gone and group.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed


@contextlib.contextmanager
def removing_orphans() -> Iterator[None]:
    """A region in which orphans are removed as they show: a controller's death takes seconds."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the head does not answer: others say so
                remove_orphans()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
