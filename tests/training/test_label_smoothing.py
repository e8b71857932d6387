"""Smoothed labels: torch's definition, in training alone, of students and of teachers."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from raykd.config.experiment import parse
from raykd.core.record import fingerprint
from raykd.data.dataset import open_split
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.models import build
from raykd.recipes import StudentRun, TeacherRun
from raykd.recipes.student import training_of
from raykd.storage.store import Store, read_json
from raykd.tracking.jsonl import read_metrics
from raykd.training.learner import Learner
from raykd.training.runs import local_host, train
from tests.small import batch, digits, outputs_of, pair, student_run, teacher_run
from tests.tiers import slow_but


def label_loss(smoothing, targets, method=None):
    """The labels' loss of a batch, and the student's logits."""
    student, teacher = pair()
    method = method or LabelOnly()
    learner = Learner(student.eval(), method, nn.ModuleDict(), label_smoothing=smoothing)
    sample = batch(len(targets))
    object.__setattr__(sample, "targets", targets)
    answer = outputs_of(teacher, sample, method.needs()) if method.needs() else None
    losses, logits = learner(sample, answer, 0.5)
    return losses, logits


def by_hand(logits, targets, smoothing):
    """The cross entropy with targets [B, C] of which each class takes its share, in plain loops."""
    total, classes = 0.0, logits.shape[1]
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        for value, share in zip(row, target, strict=True):
            total -= ((1 - smoothing) * share + smoothing / classes) * (value - norm)
    return total / len(logits)


def test_the_loss_is_torch_s_and_the_formula():
    for mixed in [False, True]:
        for smoothing in [0.0, 0.1, 0.5, 1.0]:
            targets = torch.tensor([1, 4, 7, 0])
            shares = F.one_hot(targets, 10).float()
            if mixed:
                shares = targets = 0.7 * shares + 0.3 * shares.roll(1, 0)
            losses, logits = label_loss(smoothing, targets)
            torch_s = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            assert torch.equal(losses["label"], 0.5 * torch_s)
            expected = 0.5 * by_hand(logits.detach(), shares, smoothing)
            assert losses["label"].item() == pytest.approx(expected, rel=1e-5)


def test_a_method_s_own_loss_is_not_smoothed():
    targets = torch.tensor([1, 4, 7, 0])
    plain, _ = label_loss(0.0, targets, KD())
    smoothed, _ = label_loss(0.3, targets, KD())
    assert torch.equal(plain["logits"], smoothed["logits"])
    assert not torch.equal(plain["label"], smoothed["label"])


@pytest.mark.slow
def test_without_smoothing_recipes_keep_their_fingerprints(tmp_path):
    store = Store(tmp_path)
    for make in (student_run, teacher_run):
        plain, zero, some = (make(store, **f) for f in ({}, smooth(0.0), smooth(0.1)))
        assert fingerprint(plain) == fingerprint(zero) != fingerprint(some)
    assert training_of(teacher_run(store, **smooth(0.2))).label_smoothing == 0.2


def smooth(value):
    return {"label_smoothing": value}


@pytest.mark.slow
def test_a_share_below_0_or_above_1_is_refused(tmp_path):
    data = digits(Store(tmp_path))
    for record in (StudentRun, TeacherRun):
        for value in (-0.1, 1.1):
            with pytest.raises(ValueError, match="label_smoothing"):
                record(model="resnet8", data=data, label_smoothing=value)


MIXES = [None, Mix(kind="mixup", alpha=1.0), Mix(kind="cutmix", alpha=1.0)]


@pytest.mark.parametrize("mix", slow_but(MIXES, MIXES[:1]))
def test_training_is_smoothed_and_evaluation_is_not(tmp_path, mix):
    store = Store(tmp_path)
    data = digits(store, limit=96, augment=Augment(pad=1, mix=mix))
    run = student_run(store, "label_only", data=data, teacher=None, **smooth(0.9))
    train(store, run, local_host(store, run))
    last = read_json(store.path(run) / "result.json")["last"]
    # No loss is below its target's entropy, which mixing only raises.
    assert last["loss_label"] > -(0.19 * math.log(0.19) + 0.81 * math.log(0.09))
    test = open_split(store, data, "test")
    mean, std = torch.tensor([data.mean, data.std]).view(2, 1, 3, 1, 1)
    student = build("resnet8", 10)
    student.network.load_state_dict(load_file(store.path(run) / "weights.safetensors"))
    with torch.no_grad():
        logits = student.eval()((test.pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert last["test_loss"] == pytest.approx(
        F.cross_entropy(logits, test.targets).item(), rel=1e-4
    )


@pytest.mark.slow
def test_a_teacher_learns_from_smoothed_labels(tmp_path):
    store = Store(tmp_path)
    losses = []
    for value in (0.0, 0.9):
        teacher = teacher_run(store, **smooth(value))
        train(store, teacher, local_host(store, teacher))
        losses.append(read_metrics(store.path(teacher), store)[-1]["loss"])
    assert losses[0] < 2.2 < losses[1]  # the entropy of the smoothed targets is 2.27


def test_an_assistant_has_its_student_s_smoothing():
    text = """
run:
  model: resnet8
  data: {name: digits, digest: 0123456789abcdef0123, classes: 10, size: [8, 8]}
  teacher: {model: resnet8x4}
  method: kd
  label_smoothing: 0.1
  assistants: [resnet14]
"""
    (run,) = parse(text, "chain").students()
    assert isinstance(run.teacher, StudentRun)
    assert run.label_smoothing == run.teacher.label_smoothing == 0.1
    assert run.teacher.teacher.label_smoothing == 0.0
