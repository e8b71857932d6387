"""A network as stages: what its outputs hold, what measuring leaves, who owns the parameters."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry
from raykd.core.types import Outputs, Signal
from raykd.models import NETWORKS, Staged, build, check_name, measure, parameter_count
from raykd.models.staged import Rectified, classifier_name, in_order, unallocated
from tests.each import each

PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KINDS = ("weight", "bias")


@pytest.fixture
def network() -> Staged:
    torch.manual_seed(0)
    return build("resnet8", 10)


def test_the_stages_in_order_give_what_the_network_gives(network):
    for training in (False, True):
        network.train(training)
        torch.testing.assert_close(network(PIXELS), network.network(PIXELS), rtol=0, atol=0)


def test_logits_are_always_there_and_nothing_else_is(network):
    out = network.outputs(PIXELS, Signal.LOGITS)
    assert out.logits.shape == (4, 10)
    assert dict(out.features) == {}
    with pytest.raises(LookupError, match=r"no embedding; add Signal\.EMBEDDING to needs\(\)"):
        _ = out.embedding
    with pytest.raises(LookupError, match=r"no network; add Signal\.LIVE to needs\(\)"):
        _ = out.network


def test_each_signal_brings_its_own_output(network):
    assert network.outputs(PIXELS, Signal.LIVE).network is network
    assert network.outputs(PIXELS, Signal.EMBEDDING).embedding.shape == (4, 64)
    features = network.outputs(PIXELS, Signal.FEATURES).features
    assert list(features) == list(network.stages) == ["stem", "stage1", "stage2", "stage3"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        features["stem"] = PIXELS  # a method must not change what the next one reads


def test_the_classifier_reads_the_embedding(network):
    out = network.eval().outputs(PIXELS, Signal.EMBEDDING)
    logits = network.classifier(out.embedding)
    torch.testing.assert_close(logits, out.logits, rtol=0, atol=0)


def test_rows_are_kept_spot_by_spot(network):
    wanted = Signal.FEATURES | Signal.EMBEDDING | Signal.LIVE
    out = network.eval().outputs(PIXELS, wanted)
    some, none = torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)
    kept = out.rows({"logits": some, "stage1": none, "embedding": some})
    assert torch.equal(kept.logits, out.logits[[2, 0]])
    assert torch.equal(kept.embedding, out.embedding[[2, 0]])
    assert kept.features["stage1"].shape == (0, 16, 16, 16)
    assert torch.equal(kept.features["stage2"], out.features["stage2"])
    assert list(kept.features) == list(out.features)
    assert kept.network is network


def test_rows_invent_no_outputs(network):
    kept = network.outputs(PIXELS, Signal.LOGITS).rows({"embedding": torch.tensor([0])})
    assert isinstance(kept, Outputs)
    with pytest.raises(LookupError, match="no embedding"):
        _ = kept.embedding


@each("training", [True, False])
def test_measuring_leaves_the_mode_and_the_buffers(network, training):
    network.train(training)
    before = copy.deepcopy(network.network.state_dict())
    random = torch.get_rng_state()
    shapes = measure(network, (32, 32))
    assert (shapes.classes, shapes.embedding) == (10, 64)
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(before[key], now) for key, now in network.network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_parameters_belong_to_the_plain_network_alone(network):
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    assert names == [f"network.{name}" for name, _ in network.network.named_parameters()]
    assert parameter_count(network) == parameter_count(network.network)


def test_glue_that_the_network_does_not_own_switches_with_it():
    parts = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    glue = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
    network = Staged(parts, {"stem": parts[0]}, glue, parts[1])
    assert network.eval() is network
    assert not glue[2].training
    network.train()
    assert glue[2].training


@each("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_runs_on_its_own_parameters(network, copied):
    twin = copied(network.eval())
    with torch.no_grad():
        for parameter in twin.network.parameters():
            parameter.zero_()
    assert twin(PIXELS).abs().max() == 0  # its stages are its own network's
    assert network(PIXELS).abs().max() > 0


def test_moving_the_network_moves_its_stages(network):
    network.eval().double()
    assert network(PIXELS.double()).dtype == torch.float64


def test_a_misspelt_network_is_answered_with_the_nearest_name():
    for call in (lambda: build("resnet8x5", 10), lambda: check_name("resnet8x5")):
        with pytest.raises(ConfigError, match=r"is called 'resnet8x5'; did you mean 'resnet8x4'\?"):
            call()
    with pytest.raises(ConfigError, match=r"is called 'Resnet50'; did you mean 'ResNet50'\?"):
        check_name("Resnet50")
    with pytest.raises(ConfigError, match="there are: resnet8, resnet14"):
        build("inception", 10)
    for name in NETWORKS:
        assert check_name(name) == name


class Softened(Rectified):
    """A stage with another end."""

    def rectify(self, before, *, inplace):
        return F.softplus(before)


def test_a_stage_may_end_in_another_way():
    stage, x = Softened(nn.Conv2d(3, 4, 1)), torch.randn(2, 3, 5, 5)
    before, after = stage.both(x)
    torch.testing.assert_close(before, stage[0](x), rtol=0, atol=0)
    torch.testing.assert_close(after, F.softplus(before), rtol=0, atol=0)
    torch.testing.assert_close(stage(x), after, rtol=0, atol=0)


def test_parts_in_order_are_stages_then_a_pooling_and_a_classifier():
    parts = OrderedDict(
        stem=nn.Conv2d(3, 4, 1),
        stage1=Rectified(nn.Conv2d(4, 5, 1)),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        classifier=nn.Linear(5, 2),
    )
    network = in_order(parts)
    assert network.stages == {"stem": parts["stem"], "stage1": parts["stage1"]}
    assert network.pool is parts["pool"]
    assert network.classifier is parts["classifier"]
    keys = [f"{part}.{kind}" for part in ("stem", "stage1.0", "classifier") for kind in KINDS]
    assert list(network.network.state_dict()) == keys
    out = network.outputs(PIXELS, Signal.FEATURES | Signal.PREACTIVATIONS)
    assert list(out.features) == ["stem.pre", "stem", "stage1.pre", "stage1"]
    torch.testing.assert_close(out.logits, network(PIXELS), rtol=0, atol=0)


def test_two_things_cannot_share_a_name():
    table = Registry("colour")
    assert table.add("red", 1) == 1
    with pytest.raises(ValueError, match="two things want to be the colour 'red'"):
        table.add("red", 2)
    assert list(table.items()) == [("red", 1)]


def test_a_network_is_made_without_memory_where_it_can_be():
    network = unallocated(lambda: build("resnet8", 5))
    assert {value.device.type for value in network.parameters()} == {"meta"}
    assert classifier_name(network) == "classifier"
    # torchvision's regnets compute their widths with tensors.
    assert classifier_name(unallocated(lambda: build("torchvision/regnet_x_400mf", 5))) == "fc"
