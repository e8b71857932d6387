"""Finished networks with their weights and the helpers that their method keeps.

Shapes: B batch, C classes, H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from raykd.data.dataset import AnyImages, class_names, open_images
from raykd.methods.base import Method
from raykd.methods.label_only import LabelOnly
from raykd.models.staged import Staged, without_classifier
from raykd.recipes import AnyTeacher, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.training import initial_state, weights
from raykd.training.checkpointing import Tested, read_result


@dataclass(frozen=True)
class Finished:
    """A student or a teacher of the store, in evaluation mode, on the CPU."""

    store: Store
    run: AnyTeacher
    network: Staged
    method: Method
    helpers: nn.ModuleDict  # all of the method's; only those that it releases are as trained
    result: dict[str, Any]  # the run's result.json

    @cached_property
    def train(self) -> AnyImages:
        """The training images, which must be in the store."""
        return open_images(self.store, self.run.data)[0]

    @cached_property
    def test(self) -> AnyImages:
        """The test images, which must be in the store."""
        return open_images(self.store, self.run.data)[1]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the data's classes; none where they have no labels."""
        return class_names(self.store, self.run.data.resolved())

    @property
    def released(self) -> nn.ModuleDict:
        """The helpers without which the network cannot be used."""
        if isinstance(self.run, StudentRun):
            return self.run.task.releases(self.method, self.helpers)
        return self.method.releases(self.helpers)

    @property
    def is_backbone(self) -> bool:
        """True where it has no classifier, and answers with embeddings."""
        if isinstance(self.run, TeacherRun) and self.run.logit_count() == 0:
            return True
        return self.run.task.embeds or not self.run.task.labelled

    @property
    def rescaling(self) -> Mapping[str, str | float] | None:
        """Function from the plain network's outputs to the answer, as `Method.rescaling` has it."""
        if self.is_backbone and len(self.released):
            return None
        return self.method.rescaling(self.helpers)

    def from_embedding(self, embedding: Tensor) -> Tensor:
        """A backbone's answer from its embedding [B, D]: this, or its place in another space."""
        if isinstance(self.run, StudentRun):
            return self.run.task.answer(embedding, self.released)
        return embedding

    def answer(self, pixels: Tensor) -> Tensor:
        """Scores [B, C] for normalised pixels [B, 3, H, W], as in evaluation, or embeddings."""
        if self.is_backbone:
            return self.from_embedding(self.network(pixels))
        outputs = self.network.outputs(pixels, self.method.student_needs())
        return self.method.scores(outputs, None, self.helpers)


def finished(store: Store, run: AnyTeacher) -> Finished:
    """The network of a finished run, from the store; a teacher's is that of its last epoch.

    No image is read. Raises `CacheCorrupt` where its weights are missing or were altered.
    """
    method, helpers = LabelOnly(), nn.ModuleDict()
    if isinstance(run, StudentRun):
        method = run.method
        # Labels matter to memories of samples alone, which no student is released with.
        labels = torch.arange(max(2, run.data.resolved().classes))
        network, helpers = initial_state.untrained(run, labels)
    else:
        network = weights.build_network(run)
    name = weights.anchor_path(store, run, run.anchors()[-1]).name
    weights.load_finished(store, run, name, network)
    if run.task.embeds:
        network = without_classifier(network)  # which was for the people it was trained on
    result = read_result(store.path(run), Tested)
    loaded = Finished(store, run, network.eval(), method, helpers.eval(), result)
    loaded.released.load_state_dict(weights.finished_state(store, run, weights.HELPERS))
    return loaded
