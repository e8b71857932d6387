"""The study of scaling: sizes and operations of networks, from sizes alone."""

from experiments.studies.scaling import network_cost
from raykd.models import build, parameter_count
from raykd.training.result import forward_cost


def test_parameters_and_operations_are_those_of_the_network():
    network = build("resnet8", 10)
    flops, _ = forward_cost(network, "resnet8", (16, 16))
    assert network_cost("resnet8", 10, (16, 16)) == (parameter_count(network), flops)


def test_operations_of_a_network_that_computes_while_it_is_built():
    assert network_cost("torchvision/regnet_y_400mf", 10, (64, 64))[0] > 3e6
