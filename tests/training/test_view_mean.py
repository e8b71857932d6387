"""The mean over a sample's views as a target: its formula, its cases, and its refusals."""

import pytest
import torch

from raykd.core.types import Batch, Outputs, Signal
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.mimic import MimicEmbedding
from raykd.outputs.codecs import TopK
from raykd.planning.plan import plan
from raykd.recipes import PanelRun
from raykd.storage.store import Store
from raykd.tasks import Features
from raykd.teachers.anchor_route import Route
from raykd.teachers.source import CachedTeacher, ViewMean
from raykd.training import inputs
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import CPU, digits, golden_embeddings, prepare, student_run, teacher_run

MEAN = MimicEmbedding(target="view_mean")
IDS = torch.tensor([5, 0, 95, 7])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store):
    """A student of three views, with its teacher and its caches."""
    run = student_run(store, MEAN)
    prepare(store, run)
    return run


def cache_of(store, run):
    return inputs.open_cache(store, run.outputs_at(0), list(range(run.view_count())), CPU)


def shown(view):
    return Batch(torch.empty(0), torch.zeros(4).long(), IDS, view=view, epoch=view)


def test_the_loss_has_its_golden_value():
    views = golden_embeddings()
    j, d = torch.arange(4.0).double()[:, None], torch.arange(6.0).double()
    student = torch.cos(0.35 * j + 0.8 * d + 0.3)
    teacher = Outputs(embedding=views[0]).with_looks(
        {"view_mean": Outputs(embedding=(views[0] + views[1]) / 2)}
    )
    mine = Outputs(torch.zeros(4, 10), embedding=student)
    # A mean over the embedding's 6 numbers there, a sum here.
    for normalise, value in ((False, 0.3074259871), (True, 0.1188120022)):
        method = MEAN.model_copy(update={"normalise": normalise})
        losses = method.losses(mine, teacher, shown(0), torch.nn.ModuleDict())
        assert losses["embedding"].item() == pytest.approx(6 * value, rel=1e-9)


@pytest.mark.slow
def test_every_view_s_target_is_the_mean_of_all_views(store, run):
    cache = cache_of(store, run)
    views = [CachedTeacher(cache, Signal.EMBEDDING)(shown(view)).embedding for view in range(3)]
    assert not torch.equal(views[0], views[1])
    source = inputs.teachers(store, run, CPU)
    for epoch in range(3):
        answer = source(epoch)
        assert answer is not None
        found = answer(shown(epoch)).look("view_mean").embedding
        torch.testing.assert_close(found, torch.stack(views).mean(0))


@pytest.mark.slow
def test_the_mean_of_one_view_is_that_view(store, run):
    cache = cache_of(store, run)
    signals = Signal.EMBEDDING | Signal.LOGITS
    plain = CachedTeacher(cache, signals)(shown(1))
    mean = ViewMean(cache, [1], signals)(shown(2))
    assert torch.equal(mean.embedding, plain.embedding)
    torch.testing.assert_close(mean.logits, plain.logits.log_softmax(1))
    again = ViewMean(cache, [1, 1, 1], signals)(shown(0))
    torch.testing.assert_close(again.embedding, plain.embedding)


def test_the_mean_of_probabilities_is_the_formula(store, run):
    cache = cache_of(store, run)
    views = [CachedTeacher(cache)(shown(view)).logits.softmax(1) for view in range(3)]
    mean = ViewMean(cache, range(3), Signal.LOGITS)(shown(0)).logits
    torch.testing.assert_close(mean.exp(), torch.stack(views).mean(0))


def test_it_needs_no_cache_of_its_own(store, run):
    plain = run.model_copy(update={"method": MimicEmbedding()})
    assert set(plan([plain]).caches) == set(plan([run]).caches)
    assert run.looks() == {}


@each(
    "method",
    [MEAN, KD(target="view_mean"), Combine(combine=(KD(), MEAN))],
    ids=lambda method: method.label,
)
def test_students_learn_from_it(store, method):
    run = student_run(store, method)
    prepare(store, run)
    train(store, run, local_host(store, run))
    assert store.has(run)


@pytest.mark.slow
def test_a_panel_has_the_mean_over_views_too(store):
    members = (teacher_run(store), teacher_run(store, seed=1))
    run = student_run(store, KD(target="view_mean"), teacher=PanelRun(panel=members))
    prepare(store, run)
    each = [
        inputs.open_cache(store, cache, [0, 1, 2], CPU) for cache in run.caches_at(0, "view_mean")
    ]
    means = [ViewMean(cache, range(3), Signal.LOGITS)(shown(0)).logits.exp() for cache in each]
    answer = inputs.teachers(store, run, CPU)(0)
    assert answer is not None
    found = answer(shown(0)).look("view_mean").logits.exp()
    torch.testing.assert_close(found, torch.stack(means).mean(0))


def test_each_checkpoint_of_a_route_has_the_mean_over_its_own_epochs_views(store):
    run = student_run(store, MEAN, route=Route(anchors=(1, 2), starts=(0, 2)))
    prepare(store, run)
    source = inputs.teachers(store, run, CPU)
    for epochs in ((0, 1), (2,)):
        cache = inputs.open_cache(store, run.outputs_at(epochs[0]), list(epochs), CPU)
        mean = ViewMean(cache, epochs, Signal.EMBEDDING)(shown(0)).embedding
        for epoch in reversed(epochs):  # a run that goes on later has the same target
            answer = source(epoch)
            assert answer is not None
            assert torch.equal(answer(shown(epoch)).look("view_mean").embedding, mean)


@pytest.mark.slow
def test_a_backbone_learns_from_the_mean_embedding_without_labels(store):
    run = student_run(store, MEAN, task=Features())
    prepare(store, run)
    assert not run.outputs_at(0).logits
    train(store, run, local_host(store, run))
    assert store.has(run)


def test_what_has_no_mean_over_views_is_refused(store):
    with pytest.raises(ValueError, match="which is read from a cache"):
        student_run(store, MEAN, source="live")
    mixed = digits(store, limit=96, augment=Augment(pad=1, mix=Mix(kind="mixup")))
    with pytest.raises(ValueError, match="other partners in each"):
        student_run(store, MEAN, data=mixed)
    with pytest.raises(ValueError, match="codec 'topk'"):
        student_run(store, KD(target="view_mean", temperature=1.0), codec=TopK(k=3))
