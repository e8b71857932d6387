"""Spot-adaptive distillation as its official scripts have it, where those differ from the paper."""

import pytest
import torch

from raykd.methods.at import AT
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.sakd import SAKD
from raykd.methods.vid import VID
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, helpers_of, outputs_of, pair


def after_a_step(method):
    """The maps of cc before and after an update of everything that is trained."""
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher)
    base = helpers["base"]
    maps = base["0"] if isinstance(method.base, Combine) else base
    before = {name: tensor.clone() for name, tensor in maps.state_dict().items()}
    learner = Learner(student, method, helpers)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    sample = batch(32)
    losses, _ = learner(sample, outputs_of(teacher, sample, method.needs()), 1.0)
    sum(losses.values()).backward()
    optimiser.step()
    return before, maps.state_dict()


@each(("base", "mode"), [(CC(), "adaptive"), (Combine(combine=(CC(), PKT())), "reverse")])
def test_the_teacher_s_map_of_cc_stays_as_drawn(base, mode):
    before, after = after_a_step(SAKD(base=base, mode=mode, as_released=True))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith("teacher"), name


@pytest.mark.slow
@each(("mode", "released"), [("random", True), ("adaptive", False)])
def test_otherwise_both_maps_are_trained(mode, released):
    before, after = after_a_step(SAKD(base=CC(), mode=mode, as_released=released))
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_random_labels_have_the_weight_gamma():
    for base, gamma in ((AT(), 2.0), (VID(), 2.0), (CC(), 1.0), (RelationalKD(), 2.0)):
        method = SAKD(base=base, mode="random", as_released=True)
        assert method.weight_of_labels() == gamma
        assert method.model_copy(update={"gamma": 3.0}).weight_of_labels() == 3.0
        for other in ({"mode": "adaptive"}, {"as_released": False}):
            assert method.model_copy(update=other).weight_of_labels() == 1.0


def test_random_logits_follow_the_last_map_s_coin():
    student, teacher = pair()
    method = SAKD(base=AT(), mode="random", as_released=True)
    helpers = helpers_of(method, student, teacher)
    selection = helpers["selection"]
    assert selection.names == ("stage1", "stage2", "stage3")
    sample = batch(16)
    coins = selection.uniform(sample, 3) < 0.5
    mine, theirs = (outputs_of(network, sample, method.needs()) for network in (student, teacher))
    losses = method.losses(mine, theirs, sample, helpers)
    rows = coins[:, 2].nonzero()[:, 0]
    assert 0 < len(rows) < 16
    chosen = dict.fromkeys(["logits"], rows)
    expected = KD(weight=1.0).losses(
        mine.rows(chosen), theirs.rows(chosen), sample.rows(rows), torch.nn.ModuleDict()
    )
    torch.testing.assert_close(losses["logits"], len(rows) / 16 * expected["logits"])


def test_random_with_one_spot_has_two_coins_either_way():
    student, teacher = pair()
    for released in (False, True):
        method = SAKD(base=PKT(), mode="random", as_released=released)
        assert helpers_of(method, student, teacher)["selection"].names == ("embedding", "logits")
