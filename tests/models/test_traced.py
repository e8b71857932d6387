"""Plain modules as networks with stages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.errors import ConfigError
from raykd.models import measure
from raykd.models.staged import classifier_name, without_classifier
from raykd.models.traced import staged_module
from tests.each import each


class Block(nn.Module):
    """A child that a tracer could not follow."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, 3, 2, 1)

    def forward(self, x):
        return F.relu(self.conv(x)) if x.sum() > 0 else F.relu(self.conv(-x))


class Net(nn.Module):
    """A stem, two blocks, a pooling with a dropout, a classifier."""

    def __init__(self, classes: int = 10, end=lambda x: x) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.one, self.two = Block(4, 8), Block(8, 16)
        self.fc = nn.Linear(16, classes)
        self.end = end

    def forward(self, x):
        x = self.two(self.one(F.relu(self.stem(x))))
        x = F.dropout(x.mean((2, 3)), training=self.training)
        return self.end(self.fc(x))


def shapes(network):
    return {name: shape[0] for name, shape in measure(network, (16, 16)).features.items()}


def test_children_with_convolutions_are_the_stages():
    network = staged_module("net", Net(), 10)
    assert shapes(network) == {"stem": 4, "stage1": 8, "stage2": 16}
    assert measure(network, (16, 16)).embedding == 16
    assert classifier_name(network) == "fc"


def test_named_parts_are_the_stages_and_numbered():
    assert shapes(staged_module("net", Net(), 10, ["one", "two"])) == {"stage1": 8, "stage2": 16}
    assert shapes(staged_module("net", Net(), 10, ["two"])) == {"stage1": 16}
    assert shapes(staged_module("net", Net(), 10, ["stem.0", "two"])) == {"stage1": 4, "stage2": 16}


@each("training", [True, False])
def test_the_stages_together_are_the_network_in_both_modes(training):
    network = staged_module("net", Net(), 10).train(training)
    pixels = torch.randn(3, 3, 16, 16)
    torch.manual_seed(0)
    ours = network(pixels)
    torch.manual_seed(0)
    assert torch.equal(ours, network.network(pixels))
    assert bool((network.pool(torch.ones(1, 16, 4, 4)) == 0).any()) == training  # the dropout


def test_a_copy_has_parameters_of_its_own_and_the_original_one_set():
    network = staged_module("net", Net(), 10)
    other = copy.deepcopy(network)
    assert len([*network.parameters()]) == len([*Net().parameters()])
    with torch.no_grad():
        other.network.fc.bias.fill_(5)
        other.network.two.conv.bias.fill_(5)
    assert network.network.fc.bias.max() < 5
    pixels = torch.ones(1, 3, 16, 16)
    assert torch.equal(other.eval()(pixels), other.network(pixels))


def test_it_becomes_a_backbone():
    network = without_classifier(staged_module("net", Net(), 10)).eval()
    assert network(torch.ones(1, 3, 16, 16)).shape == (1, 16)


def test_what_cannot_be_split_has_its_scores_as_the_embedding():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    for net in (Branching(), Net(end=lambda x: F.log_softmax(x, 1)), nn.Flatten()):
        network = staged_module("net", net, 10)
        assert not network.stages
        assert network.classifier is not network.network
    with pytest.raises(ConfigError, match=r"'net' cannot be split into stages .*leave"):
        staged_module("net", Branching(), 10, ["one"])


@each(
    ("options", "sentence"),
    [
        ({"stages": ["three"]}, "has no part 'three'; its parts are: stem, one, two, fc"),
        ({"stages": ["two", "one"]}, "'two' is not the only way on, or not in the order"),
        ({"classifier": "head"}, "has no part 'head'"),
        ({"classifier": "one"}, "cannot be split"),
    ],
)
def test_wrong_parts_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        staged_module("net", Net(), 10, **options)
