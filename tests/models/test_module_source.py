"""Source of `nn.Module` objects: the same answers, stages, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.errors import ConfigError
from raykd.models.module_source import check_same, source_of
from tests.each import each


class Block(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(wide, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.PReLU())
        self.one, self.two = Block(4, 8), Block(8, 16)

    def forward(self, x):
        x = self.two(self.one(self.stem(x)))
        return F.dropout(x.mean((2, 3)), training=self.training)


class Net(nn.Module):
    def __init__(self, classes: int = 10, end=lambda x: x) -> None:
        super().__init__()
        self.backbone, self.fc, self.end = Backbone(), nn.Linear(16, classes), end

    def forward(self, x):
        return self.end(self.fc(self.backbone(x)))


def built(source, classes):
    """The network of a source, without a plugin's registration."""
    scope: dict = {}
    text = source.text.replace("@raykd.register.model", "@_ignored")
    exec(text, scope | {"_ignored": lambda *_, **__: lambda make: make}, scope)  # noqa: S102
    scope["network"].__globals__.update(scope)
    return scope["network"](classes)


def test_a_source_computes_what_the_object_does_in_both_modes():
    module = Net()
    source = source_of(module)
    assert (source.classes, source.side) == (10, 32)
    assert [*source.state] == [*module.state_dict()]
    network = built(source, 10)
    network.load_state_dict(source.state)
    check_same(module, network, 32)
    assert built(source, 7).fc.out_features == 7
    assert module.training  # as it was


def test_stages_lie_inside_a_child_whose_answer_is_no_map():
    for stages in (None, ["backbone.one", "backbone.two"]):
        text = source_of(Net(), stages).text
        assert "after_backbone_two" in text
        assert ("after_backbone_stem" in text) == (stages is None)


def test_a_source_is_that_of_the_network_and_not_of_its_weights():
    one, two = source_of(Net()), source_of(Net())
    assert one.text == two.text
    assert not torch.equal(one.state["fc.weight"], two.state["fc.weight"])
    assert source_of(Net(), ["backbone.two"]).name != one.name


def test_an_output_that_is_no_linear_layers_is_an_embedding():
    source = source_of(Backbone())
    assert source.classes == 0
    assert built(source, 5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert "classifier.weight" not in source.state


def tied():
    module = Net(16)
    module.backbone.two.norm.weight = module.backbone.two.norm.bias
    return module


@each(
    ("module", "stages", "says"),
    [
        (Net(end=lambda x: x if x.sum() > 0 else -x), None, "torch.fx cannot trace"),
        (Net(end=lambda x: (x, x)), None, "returns a tuple"),
        (Net().half(), None, r"float16; call .float\(\)"),
        (Net(), ["two"], "has no part 'two'"),
        (nn.Linear(3, 4), None, r"expected a network of pixels"),
        (tied(), None, "are one parameter"),
        (nn.ReLU(), None, "has no parameters"),
    ],
)
def test_what_has_no_source_is_refused_with_the_reason(module, stages, says):
    with pytest.raises(ConfigError, match=says):
        source_of(module, stages)


def test_an_object_with_hooks_is_not_what_its_source_computes():
    module = Net()
    source = source_of(module)
    network = built(source, 10)
    network.load_state_dict(source.state)
    module.fc.register_forward_hook(lambda *given: 2 * given[-1])
    with pytest.raises(ConfigError, match="hooks"):
        check_same(module, network, 32)
