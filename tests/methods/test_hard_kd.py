"""Hard-label distillation: the cross entropy with the teacher's likeliest class."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import match_classes
from raykd.methods.hard_kd import HardKD
from raykd.outputs.codecs import CODECS, TopK
from raykd.outputs.codecs.topk import TAILS
from tests.each import each
from tests.small import golden_logits

STUDENT, TEACHER, TARGETS = golden_logits()
READINGS = [
    *(codec for kind in CODECS.values() for codec in kind().readings().values()),
    *(TopK(k=1, tail=tail) for tail in TAILS),
    TopK(k=3, tail="ghost"),
]


def loss_of(method, student, teacher, epoch=0):
    sample = Batch(torch.empty(0), TARGETS, torch.arange(4), view=0, epoch=epoch)
    losses = method.losses(student, teacher, sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def test_the_loss_has_its_golden_value():
    assert TEACHER.argmax(1).tolist() == [0, 9, 7, 6]
    loss = loss_of(HardKD(weight=1.0), Outputs(STUDENT), Outputs(TEACHER))
    assert loss.item() == pytest.approx(4.694647748, rel=1e-9)


def test_both_weights_are_a_half_by_default():
    loss = loss_of(HardKD(), Outputs(STUDENT), Outputs(TEACHER))
    assert loss.item() == pytest.approx(4.694647748 / 2, rel=1e-9)
    assert HardKD().weight_of_labels() == 0.5


@pytest.mark.slow
@each("codec", READINGS, ids=repr)
def test_a_cache_of_any_codec_gives_the_live_teacher_s_loss(codec):
    assert codec.serves(HardKD())
    # 40 classes: fewer than that are kept, and those of a flat row weigh more than the likeliest.
    generator = torch.Generator().manual_seed(0)
    student, live = torch.randn(2, 6, 40, generator=generator)
    live[0] = 0.0
    live[0, 7] = 0.5
    columns = codec.encode(Outputs(live), Signal.LOGITS)
    rows = torch.arange(6)
    cached = codec.decode(columns, rows, 40)
    mine = match_classes(Outputs(student), cached)
    loss = loss_of(HardKD(weight=1.0), mine, cached)
    torch.testing.assert_close(loss, F.cross_entropy(student, live.argmax(1)))


@pytest.mark.slow
def test_weight_0_leaves_the_labels_alone():
    assert loss_of(HardKD(weight=0.0), Outputs(STUDENT), Outputs(TEACHER)) == 0
    falling = HardKD(weight=((0, 1.0), (5, 0.25)))
    early, late = (loss_of(falling, Outputs(STUDENT), Outputs(TEACHER), e) for e in (0, 5))
    assert late.item() == pytest.approx(early.item() / 4)
