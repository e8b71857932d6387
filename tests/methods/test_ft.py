"""Factor transfer: the paraphraser's prelude, and the factors' attention."""

import pytest
import torch
from torch import nn

from raykd.core.types import Outputs, Signal
from raykd.methods.ft import FT, Paraphraser, encoder, factor_loss
from raykd.models import measure
from raykd.training.learner import Learner
from tests.small import batch, golden_maps, pair

MAPS = golden_maps()


def test_the_loss_has_its_golden_value():
    loss = factor_loss(MAPS["fs"], MAPS["ft"])
    assert loss.item() == pytest.approx(0.09459454727, rel=1e-6)


def test_the_loss_is_the_formula_of_averaged_maps():
    def attention(maps):
        flat = maps.square().mean(1).reshape(4, 16)
        return flat / flat.square().sum(1, keepdim=True).sqrt()

    small = MAPS["ft8"].reshape(4, 3, 4, 2, 4, 2).mean((3, 5))
    expected = (attention(MAPS["fs"]) - attention(small)).abs().sum() / 64
    torch.testing.assert_close(factor_loss(MAPS["fs"], MAPS["ft8"]), expected)


def test_a_factor_has_half_the_teachers_channels():
    paraphraser = Paraphraser(7)
    maps = torch.randn(2, 7, 4, 4)
    assert paraphraser.encoder(maps).shape == (2, 3, 4, 4)
    assert paraphraser(maps).shape == maps.shape
    assert not any(isinstance(part, nn.BatchNorm2d) for part in paraphraser.modules())
    translator = encoder(5, 3, norm=True)
    widths = [part.weight.shape[:2] for part in translator if isinstance(part, nn.Conv2d)]
    assert widths == [(5, 5), (3, 5), (3, 3)]
    assert sum(isinstance(part, nn.BatchNorm2d) for part in translator) == 3


def test_the_prelude_trains_the_paraphraser_to_reconstruct_the_teachers_map():
    student, teacher = pair()
    prelude = FT(paraphraser_epochs=3).prelude()
    assert (prelude.epochs, prelude.lr) == (3, 0.01)
    torch.manual_seed(0)
    helpers = prelude.method.helpers(measure(student, (16, 16)), measure(teacher, (16, 16)))
    learner = Learner(student, prelude.method, helpers)
    theirs = teacher.outputs(batch().pixels, Signal.FEATURES)
    optimizer = torch.optim.SGD(helpers.parameters(), lr=prelude.lr, momentum=0.9)
    history = []
    for _ in range(10):
        losses, _ = learner(batch(), theirs, 0.0)
        optimizer.zero_grad()
        losses["stage3"].backward()
        assert all(p.grad is not None for p in helpers.parameters())
        optimizer.step()
        history.append(losses["stage3"].item())
    assert losses.keys() == {"stage3"}
    assert history[-1] < history[0]
    expected = helpers["paraphraser"](theirs.features["stage3"]) - theirs.features["stage3"]
    assert expected.square().mean() < history[-1]


def test_the_method_takes_the_paraphraser_over_and_never_trains_it():
    student, teacher = pair()
    shapes = measure(student, (16, 16)), measure(teacher, (16, 16))
    method = FT(weight=3.0)
    trained = method.prelude().method.helpers(*shapes)
    helpers = method.helpers(*shapes)
    method.load_prelude(helpers, trained.state_dict())
    kept = helpers["paraphraser"].state_dict()
    assert all(torch.equal(kept[k], v) for k, v in trained["paraphraser"].state_dict().items())
    assert not any(p.requires_grad for p in helpers["paraphraser"].parameters())
    mine = student.outputs(batch().pixels, Signal.FEATURES)
    theirs = teacher.outputs(batch().pixels, Signal.FEATURES)
    losses = method.losses(mine, theirs, batch(), helpers)
    factors = (
        helpers["translator"](mine.features["stage3"]),
        trained["paraphraser"].encoder(theirs.features["stage3"]),
    )
    torch.testing.assert_close(dict(losses), {"stage3": 3.0 * factor_loss(*factors)})


def test_networks_may_differ_in_size_and_in_their_number_of_stages():
    student = Outputs(torch.zeros(4, 10), {"stage1": MAPS["a8"].float()})
    teacher = Outputs(torch.zeros(4, 10), {"stage1": student.logits, "stage2": MAPS["ft"].float()})
    helpers = nn.ModuleDict({"paraphraser": Paraphraser(5), "translator": encoder(3, 2, norm=True)})
    losses = FT().losses(student, teacher, batch(4), helpers)
    assert losses.keys() == {"stage1"}
    assert bool(losses["stage1"].isfinite())
