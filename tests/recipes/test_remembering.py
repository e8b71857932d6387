"""Refusal of mixed samples by methods that remember training samples."""

import pytest

from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.methods import METHODS
from raykd.methods.at import AT
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.methods.stkd import STKD
from raykd.recipes import StudentRun, TeacherRun

REMEMBERING = [
    CRD(),
    Combine(combine=(CRD(), KD(weight=1.0))),
    SAKD(base=CRD()),
    SAKD(base=Combine(combine=(AT(), CRD())), mode="always"),
]


def student(method, mix=None):
    data = Data(name="cifar10", augment=Augment(pad=4, mix=mix))
    return StudentRun(
        model="resnet8",
        data=data,
        teacher=TeacherRun(model="resnet20", data=data),
        method=method,
    )


def test_mixed_samples_are_refused():
    for kind in ["mixup", "cutmix"]:
        for method in REMEMBERING:
            assert student(method).method == method
            with pytest.raises(ValueError, match=r"remembers each training sample.*augment\.mix"):
                student(method, Mix(kind=kind, alpha=1.0))


def test_a_sum_of_one_that_mixes_and_one_that_remembers_is_refused():
    with pytest.raises(ValueError, match=r"remembers each training sample"):
        student(Combine(combine=(CRD(), STKD())))


def test_what_remembers_nothing_is_mixed_as_before():
    for name in [name for name in METHODS if name not in ("crd", "combine")]:
        method = METHODS[name]()
        assert not method.has_memory(), name
        if method.mixing() is None:
            student(method, Mix(kind="mixup", alpha=1.0))
