"""ClassMap: scores for the classes of one data set from those of a network with other classes.

Shapes: B batch, S scores of the network, C classes of the data, G members of the largest group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raykd.models.staged import Staged


class ClassMap(nn.Module):
    """Logits [B, C] from logits [B, S]: of each class, those of a group of the network's classes.

    A group of one is taken as it is. A larger one becomes log(sum(exp(logits))), which adds the
    probabilities that a softmax over S gives its members. The softmax over C is the network's own,
    given that the class is one of the groups; at another temperature than 1, that of the sums.

    It has no parameters, and nothing in a `state_dict`.
    """

    members: Tensor  # int64 [C * G], the groups one after the other, filled up with their first
    beyond: Tensor | None  # float32 [C, G]: 0 for a member, -inf where a group was filled up

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        """`groups` are the network's classes, at least one, for each class of the data."""
        super().__init__()
        self.largest = max(map(len, groups))
        filled = [[*group] + [group[0]] * (self.largest - len(group)) for group in groups]
        self.register_buffer("members", torch.tensor(filled).flatten(), persistent=False)
        sizes = torch.tensor([len(group) for group in groups])
        outside = torch.arange(self.largest) >= sizes[:, None]
        beyond = torch.zeros(outside.shape).masked_fill(outside, -torch.inf)
        self.register_buffer("beyond", beyond if self.largest > 1 else None, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """The logits of the data's classes."""
        taken = logits.index_select(1, self.members)
        if self.beyond is None:
            return taken
        return (taken.unflatten(1, (-1, self.largest)) + self.beyond).logsumexp(2)


def mapped(network: Staged, groups: Sequence[Sequence[int]] | None) -> Staged:
    """The network with a `ClassMap` behind its classifier; as it is where there are no groups."""
    if groups is not None:
        # A module of the network's, so that it moves with it; the plain network stays as it was.
        network.class_map = ClassMap(groups)
        vars(network)["classifier"] = nn.Sequential(network.classifier, network.class_map)
    return network
