"""Views that are drawn by a student's seed: other pixels, and caches of their own."""

import pytest
import torch

from raykd.config.scale import Scale
from raykd.core.record import fingerprint
from raykd.data.dataset import open_split
from raykd.data.loading.loader import Views
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.crop import Crop
from raykd.data.transforms.mixing import Mix
from raykd.methods import METHODS
from raykd.planning.plan import plan
from raykd.storage.store import Store
from raykd.training import inputs
from tests.each import each
from tests.small import CPU, digits, student_run

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def seeds(store, method="kd", *, apart, **changes):
    return [student_run(store, method, seed=s, views_by_seed=apart, **changes) for s in SEEDS]


def test_seeds_share_caches_unless_their_views_are_their_own(store):
    shared, apart = (plan(seeds(store, apart=apart)) for apart in (False, True))
    training = [
        [job for job in work.caches if job.run.split == "train"] for work in (shared, apart)
    ]
    assert [len(jobs) for jobs in training] == [1, 3]  # the price, which a plan shows
    assert len(shared.teachers) == len(apart.teachers) == 1
    tests = [[job for job in work.caches if job.run.split == "test"] for work in (shared, apart)]
    assert [len(jobs) for jobs in tests] == [1, 1]


def pixels(store, run):
    """The first view of some rows."""
    images = open_split(store, run.data, "train")
    views: Views = inputs.views_of(images, run.shown(), CPU, Scale())
    (batch,) = views.runs(torch.arange(len(images)), len(images), view=0)
    return batch.pixels


@pytest.mark.slow
@each(
    "augment",
    [
        Augment(pad=1),
        Augment(crop=Crop(scale=(0.5, 1.0), ratio=(1.0, 1.0))),
        Augment(mix=Mix(kind="mixup", alpha=1.0)),
    ],
    ids=["pad", "crop", "mixup"],
)
def test_each_seed_sees_other_pixels_and_the_same_images(store, augment):
    data = digits(store, limit=96, augment=augment)
    shared, apart = (
        [pixels(store, run) for run in seeds(store, "label_only", apart=a, data=data, teacher=None)]
        for a in (False, True)
    )
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], apart[0])
    assert not torch.equal(apart[0], apart[1]) and not torch.equal(apart[1], apart[2])
    for run in seeds(store, apart=True):
        assert run.data == student_run(store).data  # whose seed says which rows there are


@pytest.mark.slow
@each("name", ["kd", "ft", "ab", "mlkd", "stkd"])
def test_every_look_is_drawn_by_the_seed_and_tests_are_as_they_were(store, name):
    plain, apart = (student_run(store, name, seed=3, views_by_seed=a) for a in (False, True))
    assert apart.shown().view_seed == 3 and plain.shown().view_seed is None
    assert all(data.view_seed == 3 for data in apart.looks().values())
    assert apart.test_caches() == plain.test_caches()
    before = apart.prelude()
    if before is not None:  # what has no part of the student is shared by all seeds
        assert before.data.view_seed == (None if before.model is None else 3)


@each("name", ["kd", "label_only"])
def test_views_of_its_own_give_a_student_another_fingerprint(store, name):
    run = student_run(store, METHODS[name]())
    assert fingerprint(run) != fingerprint(run.model_copy(update={"views_by_seed": True}))
