"""Classifier by the angle between an embedding and a direction of each class.

Shapes: B batch, C classes, D embedding width.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.models.staged import Staged, classifier_name


class CosineClassifier(nn.Module):
    """scale * cosine of the embedding and each class's direction, in float32; no bias.

    The directions start from N(0, 0.01**2), as insightface's do. `moments` are two numbers, and
    `steps` a count, that a loss may keep from step to step; they are part of the state. Where it is
    `sampled`, there are no logits in training: a loss asks for those of some classes.
    """

    moments: Tensor
    steps: Tensor

    def __init__(self, width: int, classes: int, scale: float, *, sampled: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.scale = scale
        self.sampled = sampled
        self.register_buffer("moments", torch.tensor([20.0, 100.0]))
        self.register_buffer("steps", torch.zeros(()))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embedding: Tensor) -> Tensor | None:
        """Logits [B, C] of embeddings [B, D]; None in training where it is `sampled`."""
        return None if self.sampled and self.training else self.logits(embedding, self.weight)

    def logits(self, embedding: Tensor, directions: Tensor) -> Tensor:
        """Logits [B, K] of embeddings [B, D] for some classes' directions [K, D]."""
        device = embedding.device.type
        lower = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if lower else nullcontext():
            unit = F.normalize(embedding.to(directions.dtype), dim=1)
            return self.scale * unit @ F.normalize(directions, dim=1).T


def with_cosine_classifier(network: Staged, scale: float, *, sampled: bool = False) -> Staged:
    """A network whose linear classifier gives way to a `CosineClassifier` of as many classes.

    Raises `ConfigError` where its last layer is no linear layer of its own.
    """
    name, linear = classifier_name(network), network.classifier
    if not name or not isinstance(linear, nn.Linear):
        raise ConfigError(
            "its last layer is no linear map of an embedding, which angles replace; choose another "
            "network"
        )
    width, classes = linear.in_features, linear.out_features
    classifier = CosineClassifier(width, classes, scale, sampled=sampled)
    network.network.set_submodule(name, classifier)
    vars(network)["classifier"] = classifier
    return network
