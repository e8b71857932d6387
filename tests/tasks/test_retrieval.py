"""Students of retrieval: how they are ranked, what is released, and what is refused."""

import json

import pytest
import torch

from raykd.core.types import Outputs, Signal
from raykd.data.dataset import open_images, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data
from raykd.export.folder import export
from raykd.methods import METHODS
from raykd.methods.embed_distill import EmbedDistill
from raykd.methods.mimic import MimicEmbedding
from raykd.models import build
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tasks import Retrieval, RetrievalSet
from raykd.tasks.rankings import retrieval
from raykd.training.checkpointing import read_result
from raykd.training.evaluation import evaluate
from raykd.training.load_trained import finished
from raykd.training.runs import local_host
from tests.each import each
from tests.small import student_run
from tests.training.route_runs import carried

FAST = Optim(epochs=2, batch=32)


@pytest.fixture(scope="module")
def teacher(data):
    return TeacherRun(model="resnet8x4", data=data, optim=Optim(epochs=1, batch=32), save_every=1)


def student(data, teacher, **fields):
    fields = {"method": EmbedDistill(), "task": Retrieval(), "views": 1} | fields
    return StudentRun(model="resnet8", data=data, teacher=teacher, optim=FAST, **fields)


def last_of(store, run):
    carried(store, run)
    return read_result(store.path(run))["last"]


@pytest.mark.slow
def test_an_asymmetric_student_is_released_with_its_map_and_ranked_by_it(store, data, teacher):
    run = student(data, teacher)
    last = last_of(store, run)
    assert last.keys() >= {"recall_at_1", "recall_at_5", "map", "map_at_r", "agreement_at_10"}
    assert last.keys() >= {"symmetric_map", "teacher_map", "test_loss"}
    released = finished(store, run)
    assert [*released.released] == ["projection"]
    assert run.test_caches()[0].signals() == Signal.EMBEDDING  # whose rows are the gallery
    mean, std = (torch.tensor(value) for value in (data.mean, data.std))
    shown = ((released.test.pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    labels = released.test.targets
    with torch.no_grad():
        answers = released.answer(shown)
        theirs = finished(store, teacher).network.outputs(shown, Signal.EMBEDDING).embedding
    assert answers.shape == theirs.shape == (len(labels), 256)
    # The gallery is what the cache holds, in 16 bits.
    result = retrieval(answers, theirs.half(), labels, labels, alike=True)
    assert last["recall_at_1"] == pytest.approx(100 * result.recall[1], abs=0.5)
    assert last["map"] == pytest.approx(100 * result.mean_average_precision, abs=0.2)


@pytest.mark.slow
def test_a_symmetric_student_is_released_without_a_map(store, data, teacher):
    run = student(data, teacher, task=Retrieval(gallery="student"), method=MimicEmbedding())
    last = last_of(store, run)
    assert "recall_at_1" in last and "symmetric_map" not in last
    assert not finished(store, run).released


def test_a_probe_judges_instead_of_the_test_images(store, data, teacher):
    whole = data.model_copy(update={"limit": None})
    last = {}
    for gallery in ("test", "train"):
        task = Retrieval(gallery="student", probe=RetrievalSet(data=whole, gallery=gallery))
        last[gallery] = last_of(store, student(data, teacher, task=task))
        assert "teacher_map" not in last[gallery]
    assert last["test"]["map"] != last["train"]["map"]


def test_a_network_that_is_the_teacher_agrees_with_it_in_everything():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    metrics = Retrieval().collected(x, x, x, torch.arange(40) % 4)
    assert metrics["agreement_at_10"] == 100
    for name in ("recall_at_1", "map", "map_at_r"):
        assert metrics[name] == metrics[f"teacher_{name}"] == metrics[f"symmetric_{name}"]


def test_the_labels_of_a_batch_change_no_loss(data, teacher):
    task, method = Retrieval(), EmbedDistill()
    x, y = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    none = torch.nn.ModuleDict()
    outputs = Outputs(embedding=x), Outputs(embedding=y)
    from tests.small import batch

    sums = [task.batch_sums(method, *outputs, batch(seed=seed), none) for seed in (0, 1)]
    assert torch.equal(*sums)


def test_an_export_holds_the_map_in_its_graph(store, data, teacher, tmp_path):
    run = student(data, teacher)
    carried(store, run)
    exported = export(store, run, tmp_path / "out", ["torch"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not exported.plain
    assert (config["num_features"], config["calibration"]) == (256, None)


@each(
    ("fields", "words"),
    [
        ({"method": METHODS["rkd"]()}, "does not bring into one space; choose one of mimic_emb"),
        (
            {"method": METHODS["kd"]()},
            "task 'retrieval' compares embeddings, and method 'kd' reads",
        ),
        ({"label_weight": 1.0}, "task 'retrieval' has no label loss"),
    ],
)
def test_what_does_not_suit_retrieval_is_refused(data, teacher, fields, words):
    with pytest.raises(ValueError, match=words):
        student(data, teacher, **fields)


def test_images_without_labels_need_a_probe(store, data, teacher):
    bare = read(store, Data(name="digits", holdout=0.3, limit=160, labels="none"), None)
    with pytest.raises(ValueError, match="judged by labels"):
        student(bare, teacher)
    student(
        bare,
        teacher,
        task=Retrieval(
            gallery="student", probe=RetrievalSet(data=data.model_copy(update={"limit": None}))
        ),
    )


@each(
    ("fields", "words"),
    [
        ({"ranks": (5, 10)}, "1 among them"),
        ({"ranks": (1, 1)}, "different ones"),
        ({"probe": RetrievalSet(data=Data(name="digits"))}, "no embeddings of the teacher's"),
    ],
)
def test_tasks_that_contradict_themselves_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Retrieval(**fields)


def test_a_frozen_teacher_is_ranked_at_the_first_evaluation_alone(tmp_path):
    store = Store(tmp_path)
    run = student_run(store)
    views, host = Views(open_images(store, run.data)[1], run.data), local_host(store, run)
    torch.manual_seed(0)
    network, kept = build("resnet8", 0), []
    embeddings = torch.randn(len(views.images), 64)

    def judged(kept=None):
        nothing, task = torch.nn.ModuleDict(), Retrieval()
        teacher = lambda batch: Outputs(embedding=embeddings[batch.ids])  # noqa: E731
        evaluation = (network, EmbedDistill(), nothing, views, teacher, host)
        return evaluate(*evaluation, task=task, of_teacher=kept)

    first, again, alone = judged(kept), judged(kept), judged()
    assert first == again == alone
    (rankings,) = kept
    assert rankings.nearest.dtype == torch.int32 and rankings.nearest.shape[1] == 10
    marked = judged([rankings._replace(worth={"map": -1.0})])
    assert marked.pop("teacher_map") == -1 and marked.items() < alone.items()
