"""Students of several teachers: their mean, live and from the cache of each."""

import pytest
import torch

from raykd.core.errors import CacheMismatch
from raykd.core.types import Combination
from raykd.methods.ca_mkd import CAMKD
from raykd.methods.combine import Combine
from raykd.methods.ebkd import EBKD
from raykd.methods.kd import KD
from raykd.methods.panel_distillation import PanelDistillation
from raykd.recipes import PanelRun
from raykd.storage.store import Store
from raykd.tasks import Features
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


def answers(store, *teachers, **panel):
    """The logits [32, C] that a student's first epoch has from a panel, or from one teacher."""
    return outputs(store, *teachers, **panel).logits


def outputs(store, *teachers, source="auto", method="kd", **panel):
    """The outputs that a student's first epoch has for 32 images."""
    (teacher,) = teachers if not panel else (PanelRun(panel=teachers, **panel),)
    run = student_run(store, method, teacher=teacher, source=source)
    train_views, _ = inputs.views(store, run, local_host(store, run))
    sample = train_views.batch(torch.arange(32), run.view_at(0))
    answer = inputs.teachers(store, run, CPU)(0)
    assert answer is not None
    return answer(sample)


@pytest.mark.slow
@each("combine", WAYS)
def test_equal_teachers_are_one_teacher(store, members, combine):
    one, _ = members
    together = answers(store, one, one, one, combine=combine)
    torch.testing.assert_close(together.softmax(1), answers(store, one).softmax(1))


@pytest.mark.slow
@each("combine", WAYS)
def test_the_order_of_members_with_their_shares_changes_nothing(store, members, combine):
    one, two = members
    there = answers(store, one, two, combine=combine, shares=(1.0, 3.0))
    back = answers(store, two, one, combine=combine, shares=(3.0, 1.0))
    torch.testing.assert_close(there, back)
    assert not torch.allclose(there, answers(store, one, two, combine=combine), atol=1e-3)


@pytest.mark.slow
@each("combine", WAYS)
def test_a_member_without_a_share_changes_nothing(store, members, combine):
    one, two = members
    shared = answers(store, one, two, combine=combine, shares=(0.5, 0.0))
    torch.testing.assert_close(shared, answers(store, one, combine=combine))


@each("combine", WAYS)
def test_a_cached_panel_is_the_live_panel(store, members, combine):
    live = answers(store, *members, combine=combine, source="live")
    cached = answers(store, *members, combine=combine)
    largest = max(answers(store, member, source="live").abs().max() for member in members)
    # Each member's logits are float16: rounded by at most 2^-11 of a value; log-softmax doubles it.
    torch.testing.assert_close(cached, live, rtol=1e-3, atol=float(largest) * 2**-10)


@pytest.mark.slow
def test_members_are_handed_on_whole_from_their_own_caches(store, members):
    for source, exact in (("auto", True), ("live", False)):
        whole = outputs(store, *members, combine="none", method="ebkd", source=source)
        assert len(whole.panel) == 2 and torch.equal(whole.logits, whole.panel[0].logits)
        for member, answer in zip(members, whole.panel, strict=True):
            alone = answers(store, member)
            assert not exact or torch.equal(answer.logits, alone)
            # Float16 of up to 32 below the maximum.
            torch.testing.assert_close(answer.logits, alone, rtol=1e-3, atol=1e-2)
    # Without another pass of a teacher: the caches are those of each teacher alone.
    runs = [
        student_run(store, "ebkd", teacher=PanelRun(panel=chosen, combine="none"))
        for chosen in (members, members[:1], members[::-1])
    ]
    single = [student_run(store, teacher=member).outputs_at(0) for member in members]
    assert all(cache in single for run in runs for cache in run.caches_at(0))


def test_a_method_of_one_teacher_is_refused_several_and_the_other_way_round(store, members):
    cases: tuple[tuple[str, Combination], ...] = (("kd", "none"), ("aekd", "mean_logits"))
    for method, combine in cases:
        with pytest.raises(ValueError, match=f"combine is {combine}"):
            student_run(store, method, teacher=PanelRun(panel=members, combine=combine))
    both = Combine(combine=(KD(weight=1.0), EBKD()))
    with pytest.raises(ValueError, match="choose that one alone"):
        student_run(store, both, teacher=PanelRun(panel=members, combine="none"))
    with pytest.raises(ValueError, match="leave them out with combine: none"):
        PanelRun(panel=members, combine="none", shares=(1.0, 2.0))


@pytest.mark.slow
def test_a_student_learns_from_several_teachers(store, members):
    whole = PanelRun(panel=members, combine="none")
    features = CAMKD(feature_weight=50.0)  # each map goes through its own teacher's classifier
    maps: list[float] = []
    for method, source in (
        ("ebkd", "auto"),
        ("ca_mkd", "auto"),
        ("aekd", "auto"),
        (features, "auto"),
        (features, "live"),
    ):
        run = student_run(store, method, teacher=whole, source=source)
        prepare(store, run)
        train(store, run, local_host(store, run))
        last = read_result(store.path(run))["last"]
        assert last["loss_logits"] > 0 and 0 <= last["agreement"] <= 100
        maps += [last["loss_stage3"]] if method == features else []
    assert maps[0] == pytest.approx(maps[1], rel=1e-2) and maps[0] > 0  # float16


@pytest.mark.slow
def test_a_backbone_learns_from_several_teachers_without_labels(store, members):
    runs = [
        student_run(
            store,
            PanelDistillation(grid=2, projector="ladder"),
            task=Features(),
            teacher=PanelRun(panel=members, combine="none"),
            views=1,
            source=source,
        )
        for source in ("auto", "live")
    ]
    prepare(store, *runs)
    losses = []
    for run in runs:
        train(store, run, local_host(store, run))
        last = read_result(store.path(run))["last"]
        losses.append((last["loss_embedding"], last["loss_stage3"]))
        assert 0 < last["cka"] <= 100
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # float16


@pytest.mark.slow
def test_a_missing_cache_is_no_smaller_mean(tmp_path):
    store = Store(tmp_path)
    one, two = teacher_run(store), teacher_run(store, seed=1)
    prepare(store, student_run(store, teacher=one))
    train(store, two, local_host(store, two))
    with pytest.raises(CacheMismatch, match="no cache is there yet"):
        answers(store, one, two, combine="mean_logits")


@pytest.mark.slow
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
