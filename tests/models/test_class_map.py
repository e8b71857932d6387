"""Scores for other classes: probabilities add, and nothing else changes."""

import copy

import pytest
import torch
from torch.export import export

from raykd.core.types import Signal
from raykd.models import build, measure
from raykd.models.class_map import ClassMap, mapped

GROUPS = ((3,), (0, 7, 8), (5, 1))
LOGITS = 30 * torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_probabilities_of_a_group_add():
    probabilities = LOGITS.double().softmax(1)
    sums = torch.stack([probabilities[:, list(group)].sum(1) for group in GROUPS], dim=1)
    expected = (sums / sums.sum(1, keepdim=True)).log()
    answer = ClassMap(GROUPS)(LOGITS)
    assert answer.dtype == torch.float32 and answer.shape == (64, 3)
    # float32 logits up to 100: 2**-17 each, and a logarithm of their sum.
    torch.testing.assert_close(answer.log_softmax(1).double(), expected, rtol=1e-6, atol=4e-5)


def test_classes_of_their_own_are_taken_as_they_are():
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    single = ClassMap([(int(index),) for index in order])(LOGITS)
    assert torch.equal(single, LOGITS[:, order])
    # Beside larger groups, too: the logarithm undoes the exponential of a single zero.
    assert torch.equal(ClassMap(GROUPS)(LOGITS)[:, 0], LOGITS[:, 3])


def test_a_class_that_the_network_leaves_out_stays_out():
    logits = LOGITS.index_fill(1, torch.tensor([0, 3]), -torch.inf)
    answer = ClassMap(GROUPS)(logits)
    assert torch.isinf(answer[:, 0]).all()
    torch.testing.assert_close(answer[:, 1], logits[:, 7:].logsumexp(1))


def test_gradients_are_the_shares_of_a_group():
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(ClassMap(GROUPS).double(), logits[:4])


def test_it_follows_the_classifier_and_leaves_the_plain_network_alone():
    plain = build("resnet8", 9).eval()
    answering = mapped(copy.deepcopy(plain), GROUPS)
    names = [*plain.network.state_dict()]
    assert [*answering.network.state_dict()] == names
    assert [name.removeprefix("network.") for name in answering.state_dict()] == names
    assert torch.equal(answering.network(PIXELS), plain(PIXELS))
    out = answering.outputs(PIXELS, Signal.EMBEDDING | Signal.CLASSIFIER)
    assert torch.equal(out.logits, ClassMap(GROUPS)(plain(PIXELS)))
    assert torch.equal(out.classifier(out.embedding), out.logits)
    assert measure(answering, (16, 16)).classes == 3
    assert mapped(plain, None) is plain


def test_it_moves_and_is_copied_with_its_network():
    network = mapped(build("resnet8", 9), GROUPS)
    for other in (copy.deepcopy(network), network.double()):
        assert other.classifier[1] is other.class_map
    assert network(PIXELS.double()).dtype == torch.float64
    with torch.device("meta"):
        assert mapped(build("resnet8", 9), GROUPS)(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.slow
def test_it_can_be_exported():
    network = mapped(build("resnet8", 9).eval(), GROUPS)
    program = export(network, (PIXELS,)).module()
    torch.testing.assert_close(program(PIXELS), network(PIXELS))


@pytest.mark.slow
def test_it_can_be_compiled():
    network = mapped(build("resnet8", 9).eval(), GROUPS)
    compiled = torch.compile(network.through, fullgraph=True, dynamic=False)
    logits = compiled(PIXELS, before=False, after=False)[0]
    torch.testing.assert_close(logits, network(PIXELS), rtol=1e-4, atol=1e-5)
