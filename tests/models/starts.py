"""Checks that values come from the distribution that a network starts from."""

import math

from torch import Tensor, nn

DEVIATIONS = 5  # standard errors; passed once in 10**6


def assert_normal(values: Tensor, deviation: float) -> None:
    """Mean 0 and this standard deviation, within their standard errors."""
    count = values.numel()
    assert abs(values.mean()) < DEVIATIONS * deviation / math.sqrt(count)
    assert abs(values.std() - deviation) < DEVIATIONS * deviation / math.sqrt(2 * count)


def assert_he_normal(network: nn.Module) -> None:
    """Every convolution: variance 2 / (k**2 K_out), biases 0; every batch norm: the identity."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    for conv in convolutions:
        assert_normal(conv.weight, math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)))
        assert conv.bias is None or not conv.bias.any()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def assert_uniform(values: Tensor, bound: float) -> None:
    """Uniform within `bound`, as torch starts its layers."""
    assert values.abs().max() <= bound
    count = values.numel()
    deviation = bound / math.sqrt(3)
    assert abs(values.mean()) < DEVIATIONS * deviation / math.sqrt(count)
    # The variance of a uniform's squares is 4/45 bound**4.
    error = math.sqrt(4 / 45 / count) * bound**2
    assert abs(values.square().mean() - deviation**2) < DEVIATIONS * error
