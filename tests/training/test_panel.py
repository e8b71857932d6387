"""Students of several teachers: their mean, live and from the cache of each."""

import pytest
import torch

from raykd.core.errors import CacheMismatch
from raykd.recipes import PanelRun
from raykd.storage.store import Store
from raykd.training import inputs
from raykd.training.checkpointing import read_result
from raykd.training.microbenchmark import step_of
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import CPU, prepare, student_run, teacher_run

WAYS = ("mean_logits", "mean_probabilities")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def members(store):
    """Two trained teachers of other networks, with other normalisations, and their caches."""
    one = teacher_run(store)
    data = one.data.model_copy(update={"mean": (0.4, 0.4, 0.4), "std": (0.3, 0.3, 0.3)})
    two = teacher_run(store, model="resnet14", data=data, seed=1)
    for member in (one, two):
        prepare(store, student_run(store, teacher=member))
    return one, two


def answers(store, *teachers, source="auto", **panel):
    """The logits [32, C] that a student's first epoch has from a panel, or from one teacher."""
    (teacher,) = teachers if not panel else (PanelRun(panel=teachers, **panel),)
    run = student_run(store, teacher=teacher, source=source)
    train_views, _ = inputs.views(store, run, local_host(store, run))
    sample = train_views.batch(torch.arange(32), run.view_at(0))
    answer = inputs.teachers(store, run, CPU)(0)
    assert answer is not None
    return answer(sample).logits


@each("combine", WAYS)
def test_equal_teachers_are_one_teacher(store, members, combine):
    one, _ = members
    together = answers(store, one, one, one, combine=combine)
    torch.testing.assert_close(together.softmax(1), answers(store, one).softmax(1))


@each("combine", WAYS)
def test_the_order_of_members_with_their_shares_changes_nothing(store, members, combine):
    one, two = members
    there = answers(store, one, two, combine=combine, shares=(1.0, 3.0))
    back = answers(store, two, one, combine=combine, shares=(3.0, 1.0))
    torch.testing.assert_close(there, back)
    assert not torch.allclose(there, answers(store, one, two, combine=combine), atol=1e-3)


@each("combine", WAYS)
def test_a_member_without_a_share_changes_nothing(store, members, combine):
    one, two = members
    shared = answers(store, one, two, combine=combine, shares=(0.5, 0.0))
    torch.testing.assert_close(shared, answers(store, one, combine=combine))


@each("combine", WAYS)
def test_a_cached_panel_is_the_live_panel(store, members, combine):
    live = answers(store, *members, combine=combine, source="live")
    cached = answers(store, *members, combine=combine)
    torch.testing.assert_close(cached, live, rtol=1e-3, atol=2e-3)  # float16 logits


@pytest.mark.slow
def test_a_missing_cache_is_no_smaller_mean(tmp_path):
    store = Store(tmp_path)
    one, two = teacher_run(store), teacher_run(store, seed=1)
    prepare(store, student_run(store, teacher=one))
    train(store, two, local_host(store, two))
    with pytest.raises(CacheMismatch, match="no cache is there yet"):
        answers(store, one, two, combine="mean_logits")


def test_a_student_learns_from_a_panel_and_is_compared_with_it(store, members):
    runs = [student_run(store, teacher=PanelRun(panel=members), source=s) for s in ("auto", "live")]
    for run in runs:
        prepare(store, run)  # nothing but the caches of the test images, which are there
        train(store, run, local_host(store, run))
    cached, live = (read_result(store.path(run))["last"] for run in runs)
    assert cached["loss_logits"] == pytest.approx(live["loss_logits"], rel=1e-2)
    assert 0 <= cached["agreement"] <= 100


def test_a_step_with_a_live_panel_can_be_timed(store, members):
    for source in ("auto", "live"):
        run = student_run(store, teacher=PanelRun(panel=members), source=source)
        step_of(run, torch.arange(96) % 10, CPU)()
