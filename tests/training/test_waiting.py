"""No step waits for the device: it runs ahead of a GPU by as many steps as its queue holds."""

from typing import get_args

import pytest
import torch

from raykd.methods import METHODS
from raykd.methods.at import AT
from raykd.methods.ca_mkd import CAMKD
from raykd.methods.crd import CRD
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.margins import Head
from raykd.methods.reviewkd import ReviewKD
from raykd.methods.sp import SP
from raykd.methods.stkd import STKD
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.tasks import Faces
from tests.each import each
from tests.small import prepare, student_run
from tests.tiers import slow_but
from tests.training.watched import NoWaiting, Waits, watched_losses

# Methods that do wait in each step, and what for.
EXCEPTIONS = {
    "sakd": "tolist",  # how many samples are taught at each spot: those alone are computed
    "mlkd": "cpu",  # strong augmentation runs on the CPU, so that no device changes a pixel
}
FACES = [*get_args(Head)]
OTHERS = [
    CRD(negatives=40),  # fewer than there are rows: a shuffle
    STKD(mix="cutmix", alpha=0.5, incorrect_only=0.5, clean_kd=0.5),
    CAMKD(feature_weight=50.0),
    FeatureDistillation(distance="angle"),
    FeatureDistillation(distance="tangent"),
    DenseDistillation(blocks=2),
    AT(source="cache"),
    SP(source="cache"),
    ReviewKD(source="cache"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def called(method):
    """Name of a test for a method."""
    return method if isinstance(method, str) else method.label


@each("method", slow_but([*METHODS, *OTHERS], ["kd"]), ids=called)
def test_no_step_of_a_method_waits_for_the_device(store, method):
    optim = Optim(epochs=2, batch=32, ema=0.9, clip=1.0)
    run = student_run(store, method, optim=optim)
    prepare(store, run)
    if run.method.name in EXCEPTIONS:
        with pytest.raises(Waits, match=f"^{EXCEPTIONS[run.method.name]}:"):
            watched_losses(store, run)
        return
    assert len(watched_losses(store, run)) == 2


@each("head", slow_but(FACES, ["arcface"]))
def test_no_step_of_a_face_s_head_waits_for_the_device(store, head):
    task = Faces(head=head, partial=0.4)
    run = student_run(store, "label_only", teacher=None, task=task, optim=Optim(epochs=1, batch=2))
    assert len(watched_losses(store, run)) == 1


def test_what_waits_is_found():
    x = torch.arange(3.0)
    for waits in (
        lambda: x.sum().item(),
        lambda: bool(x.sum()),
        x.tolist,
        x.cpu,
        lambda: x[x > 0],
        x.nonzero,
        x.unique,
        lambda: torch.tensor([1.0, 2.0], device=x.device),
    ):
        waits()
        with pytest.raises(Waits), NoWaiting():
            waits()
        waits()
