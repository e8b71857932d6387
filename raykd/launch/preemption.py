"""Preemption: nodes that are about to be taken away, as a cloud does with spot machines."""

import threading

import ray
from ray._private.state import state

from raykd.core.shutdown import Notice

_LOOK_SECONDS = 2.0


def draining() -> set[str]:
    """The ids of the nodes that are about to go; empty where the head does not answer."""
    try:
        # Ray Train's own watcher calls it (Ray 2.60); there is no public call.
        return {*state.get_draining_nodes()}
    except Exception:
        return set()


class NodeNotice(Notice):
    """Notice that this process's node is being drained.

    A thread looks at the cluster's state; `given` costs a training nothing.
    """

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._is_draining = False
        self._closed = threading.Event()
        threading.Thread(target=self._look_repeatedly, daemon=True).start()

    def given(self) -> bool:
        return self._is_draining

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _look_repeatedly(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            self._is_draining = self._node in draining()
