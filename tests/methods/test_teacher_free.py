"""Regularisation by a made-up teacher: golden values, and a training without any teacher."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods import METHODS
from raykd.methods.ab import AB
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.margin_distillation import MarginDistillation
from raykd.methods.mimic import MimicEmbedding
from raykd.methods.multi_head_kd import MultiHeadKD
from raykd.methods.sakd import SAKD
from raykd.methods.teacher_free import TeacherFree
from raykd.planning.plan import plan
from raykd.storage.store import Store
from raykd.tasks import Features
from raykd.training.learner import Learner
from raykd.training.load_trained import finished
from raykd.training.runs import local_host, train
from tests.small import CPU, batch, golden_logits, pair, student_run

STUDENT, _, TARGETS = golden_logits()


def loss_of(method, student=STUDENT, targets=TARGETS, epoch=0):
    sample = Batch(torch.empty(0), targets, torch.arange(len(student)), view=0, epoch=epoch)
    losses = method.losses(Outputs(student), None, sample, method.helpers(None, None))
    assert list(losses) == ["logits"]
    return losses["logits"]


def test_the_loss_has_its_golden_value():
    assert loss_of(TeacherFree(weight=1.0)).item() == pytest.approx(1.55568764, rel=1e-8)


def test_the_target_is_the_released_code_s():
    u = torch.full((4, 10), 0.01 / 9, dtype=torch.float64).scatter_(1, TARGETS[:, None], 0.99)
    target = (u / 20).softmax(1)
    assert target.max().item() == pytest.approx(0.1045388436, rel=1e-9)
    assert target.min().item() == pytest.approx(0.09949568405, rel=1e-9)
    expected = F.kl_div(STUDENT.log_softmax(1), target, reduction="batchmean")
    torch.testing.assert_close(loss_of(TeacherFree(weight=0.3)), 0.3 * expected)


@pytest.mark.slow
def test_a_mixed_sample_has_the_mixture_of_its_classes_as_target():
    hard = F.one_hot(TARGETS, 10).double()
    torch.testing.assert_close(loss_of(TeacherFree(), targets=hard), loss_of(TeacherFree()))
    mixed = 0.6 * hard + 0.4 * hard.roll(1, dims=0)
    u = 0.01 / 9 + (0.99 - 0.01 / 9) * mixed
    expected = F.kl_div(STUDENT.log_softmax(1), (u / 20).softmax(1), reduction="batchmean")
    loss = loss_of(TeacherFree(weight=1.0), targets=mixed)
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_it_needs_no_teacher_and_its_plan_makes_none(tmp_path):
    run = student_run(Store(tmp_path), TeacherFree(), teacher=None)
    work = plan([run])
    assert (work.teachers, work.caches, work.students) == ((), (), (run,))


@pytest.mark.slow
def test_its_losses_are_computed_without_a_teacher():
    student, _ = pair()
    learner = Learner(student, TeacherFree(weight=0.5), torch.nn.ModuleDict())
    sample = batch()
    losses, logits = learner(sample, None, 0.9)
    assert list(losses) == ["label", "logits"]
    torch.testing.assert_close(
        losses["logits"],
        TeacherFree(weight=0.5).losses(Outputs(logits), None, sample, learner.helpers)["logits"],
    )


@pytest.mark.slow
def test_it_trains_a_student_that_differs_from_one_by_labels_alone(tmp_path):
    store = Store(tmp_path)
    run = student_run(store, TeacherFree(), teacher=None)
    train(store, run, local_host(store, run))
    loaded = finished(store, run)
    assert {"loss_label", "loss_logits"} <= loaded.result["last"].keys()
    assert loaded.network.outputs(torch.zeros(1, 3, 8, 8, device=CPU), Signal.LOGITS).logits.shape


@pytest.mark.slow
def test_a_sum_needs_a_method_that_reads_a_teacher():
    both = Combine(combine=(KD(), TeacherFree()))
    assert both.needs() == both.student_needs() == Signal.LOGITS
    with pytest.raises(ValidationError, match="none of the methods reads a teacher"):
        Combine(combine=(AB(), TeacherFree()))
    with pytest.raises(ValidationError, match="reads nothing of the teacher"):
        SAKD(base=TeacherFree())


def test_a_backbone_without_logits_is_refused_as_part_of_a_sum_too(tmp_path):
    both = Combine(combine=(MimicEmbedding(), TeacherFree()))
    assert both.reads_labels() and both.needs() == Signal.EMBEDDING
    with pytest.raises(ValidationError, match="reads logits, of which a backbone has none"):
        student_run(Store(tmp_path), both, task=Features())


@pytest.mark.slow
def test_a_method_s_signals_of_the_student_are_those_of_the_teacher_where_it_says_no_other():
    for kind in METHODS.values():
        method = kind()
        same = method.student_needs() == method.needs()
        other = method.teacherless or isinstance(method, MultiHeadKD | MarginDistillation)
        assert same != other, method.name
