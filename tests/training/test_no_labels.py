"""Runs on images without labels: what is learnt does not depend on any label."""

from pathlib import Path

import pytest

from raykd.core.record import fingerprint
from raykd.data.dataset import read
from raykd.data.recipe import Data, Stream
from raykd.data.transforms.augment import Augment
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tasks import Features
from tests.data.test_no_labels import LABELS, PERMUTED, WAYS
from tests.training.route_runs import carried

ROWS = 23


def learnt(root: Path, kind: str, labels: list[int] | None, stream: bool) -> tuple[str, bytes]:
    """The fingerprint and the weights of a student that learns from images with these labels."""
    store = Store(root / "store")
    way = {"stream": Stream(size=8)} if stream else {"resize": 8}
    WAYS[kind](root / "images", labels)
    augment = Augment(flip=True)
    data = read(store, Data(name=kind, labels="none", augment=augment, **way), root / "images")
    digits = read(store, Data(name="digits", limit=64), None)
    fast = Optim(epochs=1, batch=8)
    teacher = TeacherRun(model="resnet8", data=digits, optim=fast, save_every=1)
    run = StudentRun(
        model="resnet8",
        data=data,
        teacher=teacher,
        optim=fast,
        method=FeatureDistillation(),
        task=Features(),
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
