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
from tests.tiers import slow_but

BOTH = SAKD(mode="both")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@each("method", slow_but([*METHODS, BOTH], ["crd", "jacobian", BOTH]), ids=str)
@each("precision", slow_but(["float32", "bfloat16"], ["float32"]))
def test_a_step_of_every_method_can_be_tried_without_any_artefact(store, method, precision):
    run = student_run(store, method, precision=precision, teacher_precision=precision)
    targets = open_images(store, run.data)[0].targets
    step = step_of(run, targets, CPU)
    step()
    step()
    assert [*store.finished("teachers")] == []


def test_a_prelude_can_be_tried_too(store):
    for name in ("ab", "ft", "fsp"):
        before = student_run(store, name).prelude()
        assert before is not None
        run = before.training()
        step_of(run, torch.arange(40) % 10, CPU)()
