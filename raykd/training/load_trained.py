"""Finished networks with their weights and the helpers that their method keeps.

Shapes: B batch, C classes, H, W pixels.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raykd.data.dataset import AnyImages, open_images
from raykd.methods.base import Method
from raykd.methods.label_only import LabelOnly
from raykd.models.staged import Staged
from raykd.recipes import AnyTeacher, StudentRun
from raykd.storage.store import Store
from raykd.training import initial_state, weights
from raykd.training.checkpointing import Tested, read_result


@dataclass(frozen=True)
class Finished:
    """A student or a teacher of the store, in evaluation mode, on the CPU."""

    run: AnyTeacher
    network: Staged
    method: Method
    helpers: nn.ModuleDict  # all of the method's; only those that it releases are as trained
    result: dict[str, Any]  # what the run is remembered by
    test: AnyImages

    @property
    def released(self) -> nn.ModuleDict:
        """The helpers without which the network cannot be used."""
        return self.method.releases(self.helpers)

    @property
    def is_backbone(self) -> bool:
        """True where it has no classifier, and answers with embeddings."""
        return isinstance(self.run, StudentRun) and not self.run.task.labelled

    def answer(self, pixels: Tensor) -> Tensor:
        """Scores [B, C] for normalised pixels [B, 3, H, W], as in evaluation, or embeddings."""
        if self.is_backbone:
            return self.network(pixels)
        outputs = self.network.outputs(pixels, self.method.student_needs())
        return self.method.scores(outputs, None, self.helpers)


def finished(store: Store, run: AnyTeacher) -> Finished:
    """The network of a finished run, from the store; a teacher's is that of its last epoch.

    Raises `CacheCorrupt` where its weights are missing or were altered.
    """
    train, test = open_images(store, run.data)
    method, helpers = LabelOnly(), nn.ModuleDict()
    if isinstance(run, StudentRun):
        method = run.method
        network, helpers = initial_state.untrained(run, train.targets)
    else:
        network = weights.build_network(run)
    name = weights.anchor_path(store, run, run.anchors()[-1]).name
    weights.load_finished(store, run, name, network)
    result = read_result(store.path(run), Tested)
    loaded = Finished(run, network.eval(), method, helpers.eval(), result, test)
    loaded.released.load_state_dict(weights.finished_state(store, run, weights.HELPERS))
    return loaded
