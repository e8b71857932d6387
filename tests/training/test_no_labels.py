"""Runs on images without labels: what is learnt does not depend on any label."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raykd.core.record import fingerprint
from raykd.core.types import Signal
from raykd.data.dataset import read
from raykd.data.recipe import Data, Stream
from raykd.data.transforms.augment import Augment
from raykd.methods import METHODS, Method
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.mimic import MimicEmbedding
from raykd.models import build
from raykd.recipes import Optim, PanelRun, StudentRun, TeacherRun
from raykd.register.contract import helpers_of
from raykd.storage.store import Store
from raykd.tasks import TASKS, Features, Retrieval, RetrievalSet, Task
from raykd.training.learner import Learner
from tests.data.test_no_labels import LABELS, PERMUTED, WAYS
from tests.each import each
from tests.small import SHORT, batch, outputs_of
from tests.training.route_runs import carried

ROWS = 23
SHOWN = Data(name="digits")
DEFAULT, FEATURES = FeatureDistillation(), Features()


def method_names() -> list[str]:
    """Methods that a backbone without labels learns by: those that no recipe of one refuses."""
    names = []
    for name, kind in METHODS.items():
        teacher = TeacherRun(model="resnet8", data=SHOWN)
        if kind.panel:
            teacher = PanelRun(panel=(teacher, teacher), combine="none")
        with contextlib.suppress(ValueError):
            run = {"model": "resnet8", "data": SHOWN, "teacher": teacher, "task": Features()}
            StudentRun(**run, method=kind.read({"name": name}))
            names.append(name)
    return names


def gradients(task: Task, method: Method, seed: int) -> dict[str, torch.Tensor]:
    """Losses, sums of an evaluation, and all gradients of a step whose labels are permuted."""
    torch.manual_seed(0)
    student, teacher = build("resnet8", 0), build("resnet14", 10).eval()
    labels = torch.arange(40) % 10
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    helpers = helpers_of(method, student, teacher, targets=labels[order])
    sample = replace(batch(), targets=labels[order][:8])
    with torch.no_grad():
        answers = outputs_of(teacher, sample, method.needs() | Signal.EMBEDDING, method.derived())
        answers = answers.replace(panel=(answers,)) if method.panel else answers
    learner = Learner(student, method, helpers, task=task)
    losses, _ = learner(sample, answers, 0.0)
    torch.stack([*losses.values()]).sum().backward()
    found = {name: value.grad for name, value in learner.named_parameters()}
    if not method.has_memory():
        mine = student.eval().outputs(sample.pixels, method.student_needs() | Signal.EMBEDDING)
        found["sums"] = task.batch_sums(method, mine, answers, sample, helpers)
    return losses | {name: value for name, value in found.items() if value is not None}


@each("name", method_names())
def test_a_step_and_an_evaluation_are_bit_equal_under_permuted_labels(name):
    tasks = [task() for task in TASKS.values() if not task().labelled]
    assert len(tasks) == 2  # features and retrieval
    method = METHODS[name](**SHORT.get(name, {}))
    for task in tasks:
        first, second = (gradients(task, method, seed) for seed in (0, 1))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (task.name, key)


def learnt(
    root: Path,
    kind: str,
    labels: list[int] | None,
    stream: bool,
    method: Method = DEFAULT,
    task: Task = FEATURES,
) -> tuple[str, bytes]:
    """The fingerprint and the weights of a student that learns from images with these labels."""
    store = Store(root / "store")
    way = {"stream": Stream(size=8)} if stream else {"resize": 8}
    WAYS[kind](root / "images", labels)
    augment = Augment(flip=True)
    data = read(store, Data(name=kind, labels="none", augment=augment, **way), root / "images")
    digits = read(store, Data(name="digits", limit=64), None)
    fast = Optim(epochs=1, batch=8)
    teacher = TeacherRun(model="resnet8", data=digits, optim=fast, save_every=1)
    if method.panel:
        other = teacher.model_copy(update={"seed": 1})
        teacher = PanelRun(panel=(teacher, other), combine="none")
    run = StudentRun(
        model="resnet8",
        data=data,
        teacher=teacher,
        optim=fast,
        method=method,
        task=task,
        views=1,
    )
    assert StudentRun.read(run.plain()) == run
    carried(store, run)
    return fingerprint(run), (store.path(run) / "weights.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        ("folder", True),
        ("table", False),
        ("webdataset", True),
    ],
)
def test_runs_are_bit_equal_under_permuted_labels(tmp_path, kind, stream):
    first = learnt(tmp_path / "first", kind, LABELS[:ROWS], stream)
    assert learnt(tmp_path / "second", kind, PERMUTED[:ROWS], stream) == first
    assert learnt(tmp_path / "third", kind, None, stream) == first


@each("name", [pytest.param(name, marks=pytest.mark.slow) for name in method_names()])
def test_every_method_without_labels_gives_equal_weights_under_permuted_ones(tmp_path, name):
    method = METHODS[name](**SHORT.get(name, {}))
    ways = [learnt(tmp_path / str(number), "table", labels[:ROWS], False, method)
            for number, labels in enumerate((LABELS, PERMUTED))]  # fmt: skip
    assert ways[0] == ways[1]


@pytest.mark.slow
def test_a_student_of_retrieval_has_equal_weights_under_permuted_labels(tmp_path):
    digits = read(Store(tmp_path / "probe"), Data(name="digits", holdout=0.3), None)
    task = Retrieval(gallery="student", probe=RetrievalSet(data=digits))
    ways = [learnt(tmp_path / str(number), "table", labels[:ROWS], False, MimicEmbedding(), task)
            for number, labels in enumerate((LABELS, PERMUTED))]  # fmt: skip
    assert ways[0] == ways[1]
