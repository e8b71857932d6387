"""The steps by whose time a plan is estimated."""

import pytest
import torch

from raykd.data.dataset import open_images
from raykd.methods import METHODS
from raykd.methods.sakd import SAKD
from raykd.storage.store import Store
from raykd.training.microbenchmark import step_of
from tests.each import each
from tests.small import CPU, student_run
from tests.tiers import METHOD_KINDS, slow_but

BOTH = SAKD(mode="both")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


PLAIN = [(method, "float32") for method in (*METHODS, BOTH)]
MIXED = [(method, "bfloat16") for method in METHOD_KINDS if method in METHODS]
QUICK = [("crd", "float32"), ("jacobian", "float32"), (BOTH, "float32")]


@each(("method", "precision"), slow_but([*PLAIN, *MIXED], QUICK))
def test_a_step_of_every_method_can_be_tried_without_any_artefact(store, method, precision):
    run = student_run(store, method, precision=precision, teacher_precision=precision)
    targets = open_images(store, run.data)[0].targets
    step = step_of(run, targets, CPU)
    step()
    step()
    assert [*store.finished("teachers")] == []


def test_a_prelude_can_be_tried_too(store):
    for name in ("ab", "ft", "fsp", "multi_head_kd"):
        before = student_run(store, name).prelude()
        assert before is not None
        run = before.training()
        step_of(run, torch.arange(40) % 10, CPU)()
