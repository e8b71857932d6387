"""Measurements of a network's forward in a result."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raykd.models import NETWORKS, build, is_plain
from raykd.models.flops import flop_counter
from raykd.training.result import forward_cost

VIT = "timm/test_vit3"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("resnet8", 10)


def test_a_multiply_add_is_two_operations(network):
    flops, _ = forward_cost(network, "resnet8", (8, 8))
    sizes = {id(module): 0 for module in network.modules()}
    handles = [
        module.register_forward_hook(
            lambda module, _, out: sizes.update(
                {id(module): module.weight[0].numel() * out.numel()}
            )
        )
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    assert flops == 2 * sum(sizes.values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("resnet8", "shufflenet_v1") else pytest.mark.slow)
        for name in NETWORKS
        if is_plain(name)
    ],
)
def test_flops_of_a_plain_network_are_those_that_torch_counts(name):
    network = build(name, 10).eval()
    size = (112, 112) if name.startswith(("mobilefacenet", "iresnet")) else (32, 32)
    size = {"mobilefacenet_112x96": (112, 96), "mobilefacenet_m_48x48": (48, 48)}.get(name, size)
    pixels = torch.zeros(1, 3, *size)
    with torch.no_grad(), flop_counter(name) as ours, FlopCounterMode(display=False) as theirs:
        network(pixels)
    assert ours.get_total_flops() == theirs.get_total_flops() > 1e5


def test_four_times_the_pixels_are_four_times_the_work_but_for_the_classifier(network):
    small, large = (forward_cost(network, "resnet8", size)[0] for size in ((8, 8), (16, 16)))
    classifier = 2 * 64 * 10
    assert large - classifier == 4 * (small - classifier)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(network, training):
    network.train(training)
    network.network[0].eval()  # such as a part that is kept as it is
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before = torch.get_rng_state()
    _, milliseconds = forward_cost(network, "resnet8", (8, 8))
    assert milliseconds > 0
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_forward_is_measured_where_a_parameter_itself_is_asked():
    pytest.importorskip("timm")
    flops, _ = forward_cost(build(VIT, 0), VIT, (160, 160))  # pools by attention
    assert flops > 1e6


@pytest.mark.gpu
def test_a_forward_is_measured_on_a_gpu(network):
    on_cpu, _ = forward_cost(network, "resnet8", (8, 8))
    on_gpu, milliseconds = forward_cost(network.cuda(), "resnet8", (8, 8))
    assert on_gpu == on_cpu
    assert milliseconds > 0
