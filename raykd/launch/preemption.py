"""Word that the node of a Ray worker is about to be taken away."""

import threading

import ray
from ray._private.state import state

from raykd.core.shutdown import Notice

_ASK_SECONDS = 2.0


def draining() -> set[str]:
    """The ids of the nodes that are about to go; none where the head does not answer."""
    try:
        # What Ray Train's own watcher asks (Ray 2.60); there is no public call.
        return {*state.get_draining_nodes()}
    except Exception:
        return set()


class NodeNotice(Notice):
    """Whether this process's node is being drained, as a preempted spot node is.

    A thread asks for it now and then, and the training asks the thread.
    """

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._draining = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def given(self) -> bool:
        return self._draining

    def close(self) -> None:
        """Ask no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_ASK_SECONDS):
            self._draining = self._node in draining()
