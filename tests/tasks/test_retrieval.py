"""Students of retrieval: how they are ranked, what is released, and what is refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from raykd.cli import main
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError, RaykdError
from raykd.core.record import fingerprint
from raykd.core.types import Outputs, Signal
from raykd.data.dataset import open_images, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data
from raykd.export.folder import export
from raykd.methods import METHODS
from raykd.methods.embed_distill import EmbedDistill
from raykd.methods.mimic import MimicEmbedding
from raykd.models import build
from raykd.planning.plan import plan
from raykd.planning.preflight import preflight
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tasks import Retrieval, RetrievalSet
from raykd.tasks.base import Embedded
from raykd.tasks.rankings import retrieval
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import read_result
from raykd.training.evaluation import evaluate
from raykd.training.load_trained import finished
from raykd.training.runs import local_host
from tests.data.files import encoded, put
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


def plain(data):
    return data.model_copy(update={"limit": None})


def test_an_asymmetric_probe_of_the_test_images_measures_what_is_measured_without_one(
    store, data, teacher
):
    run = student(data, teacher)
    probe = RetrievalSet(data=plain(data))
    probed = student(data, teacher, task=Retrieval(probe=probe))
    assert probed.probe_caches() == {"test": run.test_caches()}
    without, last = last_of(store, run), last_of(store, probed)
    assert last.pop("probe_agreement_at_10") == last["agreement_at_10"]
    assert last.keys() == without.keys()
    names = [name for name in last if name.endswith(("map", "map_at_r", "at_1", "at_5", "at_10"))]
    assert [last[name] for name in names] == [without[name] for name in names]


def test_an_asymmetric_probe_ranks_a_gallery_that_the_teacher_embeds_once_for_all(
    store, data, teacher
):
    probe = RetrievalSet(data=plain(data), gallery="train", every=1)
    seeds = [student(data, teacher, task=Retrieval(probe=probe), seed=seed) for seed in (0, 1)]
    work = plan(seeds)
    caches = [job for job in work.caches if job.run.data == plain(data)]
    assert sorted(job.run.split for job in caches) == ["test", "train"]  # of both students
    assert all(job.run.signals() == Signal.EMBEDDING and job.views == (0,) for job in caches)
    last = last_of(store, seeds[0])
    assert "symmetric_map" not in last and "queries_left_out" not in last
    # The same numbers from the embeddings themselves.
    released = finished(store, seeds[0])
    images = open_images(store, plain(data))
    mean, std = (torch.tensor(value) for value in (data.mean, data.std))
    known, asked = (((p.pixels / 255 - mean) / std).permute(0, 3, 1, 2) for p in images)
    network = finished(store, teacher).network
    with torch.no_grad():
        found, theirs = (network.outputs(x, Signal.EMBEDDING).embedding for x in (known, asked))
        answers = released.answer(asked)
    for prefix, queries in (("", answers), ("teacher_", theirs.half())):
        result = retrieval(queries, found.half(), images[1].targets, images[0].targets)
        assert last[f"{prefix}recall_at_1"] == pytest.approx(100 * result.recall[1], abs=0.5)
        assert last[f"{prefix}map"] == pytest.approx(100 * result.mean_average_precision, abs=0.2)
    # Each epoch was probed, and the teacher's part is the same.
    history = read_metrics(store.path(seeds[0]))
    assert [entry["teacher_map"] for entry in history] == [last["teacher_map"]] * 2


def test_queries_with_nothing_to_find_are_counted_and_left_out():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    probe = RetrievalSet(data=Data(name="digits"), gallery="train")
    none = torch.empty(0, 0)
    gallery = Embedded(torch.tensor([0, 0, 1, 1]), none, none, x[:4])
    queries = Embedded(torch.tensor([0, 1, 2, 2, 2]), x[4:], x[4:], x[4:])
    task = Retrieval(probe=probe)
    metrics = task.judged(gallery, queries, "abc")
    assert metrics["queries_left_out"] == 3 and metrics["map"] == metrics["teacher_map"]
    assert metrics["probe_agreement_at_10"] == 100
    some = queries._replace(labels=queries.labels[:2], answer=x[4:6], teacher=x[4:6])
    fewer = task.judged(gallery, some, "abc")
    assert "queries_left_out" not in fewer and fewer["map"] == metrics["map"]
    alone = Retrieval(gallery="student", probe=probe)
    shown = gallery._replace(student=x[:4], answer=x[:4])
    assert alone.judged(shown, queries, "abc")["map"] == metrics["map"]
    assert alone.judged(shown, queries, "abc")["queries_left_out"] == 3


LISTED = """
run:
  model: resnet8
  data: {name: folder, holdout: 0.5}
  teacher: {model: resnet8x4, optim: {epochs: 1, batch: 16}}
  method: embed_distill
  optim: {epochs: 1, batch: 16}
  task: {name: retrieval, probe: {data: {name: rankings}}}
scale: {workers: 0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Digits to train on by class, and others as queries and a gallery of both layouts."""
    root = tmp_path_factory.mktemp("digits")
    images = load_digits()
    for row in range(120):
        label, number = int(images.target[row]), row // 10
        picture = Image.fromarray((images.images[row] * 15).astype(np.uint8))
        if row < 60:
            put(root / "train" / str(label % 5) / f"{row}.png", encoded(picture))
            continue
        part = "query" if number % 2 else "gallery"
        if part == "query" or label:  # the gallery has no 0
            put(root / "shop" / part / f"digit {label}" / f"{row}.png", encoded(picture))
    lines: list[str] = []
    names = sorted(str(path.relative_to(root / "shop")) for path in (root / "shop").glob("*/*/*"))
    for query in (name for name in names if name.startswith("query")):
        for image in (name for name in names if name.startswith("gallery")):
            if query.split("/")[1] == image.split("/")[1]:
                lines.append(f"{query},relevant,{image}")
            elif image.split("/")[1] == "digit 9":
                lines.append(f"{query},junk,{image}")
    put(root / "shop" / "rankings.csv", "\n".join(lines))
    return root


FOLDER = ["run.task.probe.data.name=folder"]


@pytest.mark.slow
@pytest.mark.parametrize("gallery", ["teacher", "student"])
def test_queries_are_judged_by_a_gallery_apart_and_by_a_list_of_it(place, tmp_path, gallery):
    last, store = {}, tmp_path / "store"
    file = put(tmp_path / "x.yaml", LISTED)
    where = [f"data.path={place / 'train'}", f"data.probe={place / 'shop'}"]
    for name, more in (("list", []), ("folder", FOLDER)):
        words = [file, *where, *more, f"run.task.gallery={gallery}"]
        result = CliRunner().invoke(main, ["run", *map(str, words), "--store", str(store)])
        assert result.exit_code == 0, result.output
        (run,) = resolve(parse(LISTED, "x", [str(word) for word in words[1:]]), Store(store)).runs
        last[name] = read_result(Store(store).path(run))["last"]
    # Queries of classes that the gallery lacks have nothing to find, in the folder and in the list.
    known = {path.name for path in (place / "shop" / "gallery").iterdir()}
    asked = (path.parent.name for path in (place / "shop" / "query").glob("*/*"))
    count = sum(name not in known for name in asked)
    assert [found["queries_left_out"] for found in last.values()] == [count, count]
    # The list takes some images of other classes out of the way.
    assert last["list"]["map"] > last["folder"]["map"] - 1e-9
    assert ("teacher_map" in last["list"]) == (gallery == "teacher")


def test_a_teacher_embeds_a_probe_at_its_own_size(place, tmp_path):
    sizes = {"run": 16, "run.teacher": 24, "run.task.probe": 16}
    streams = [f"{key}.data.stream.size={size}" for key, size in sizes.items()]
    same = ["run.teacher.data.name=folder", "run.teacher.data.holdout=0.5"]
    where = [f"data.path={place / 'train'}", f"data.probe={place / 'shop'}"]
    experiment = resolve(parse(LISTED, "x", [*where, *streams, *same]), Store(tmp_path))
    preflight(experiment, Store(tmp_path))
    (run,) = experiment.runs
    caches = [cache for part in run.probe_caches().values() for cache in part]
    assert {(cache.split, cache.data.size) for cache in caches} == {
        ("train", (24, 24)), ("test", (24, 24)),
    }  # fmt: skip
    # All seeds, and students with other rates, share them.
    others = run.model_copy(update={"seed": 7, "model": "resnet14"})
    assert others.probe_caches() == run.probe_caches()


def test_a_teacher_that_takes_no_images_of_the_probe_is_refused_at_once(place, tmp_path):
    where = [f"data.path={place / 'train'}", f"data.probe={place / 'shop'}", *FOLDER]
    sized = ["run.data.resize=112", "run.teacher.model=mobilefacenet"]
    experiment = resolve(parse(LISTED, "x", [*where, *sized]), Store(tmp_path))
    with pytest.raises(ConfigError, match=r"run\.task\.probe\.data: .*mobilefacenet"):
        preflight(experiment, Store(tmp_path))


@each(
    ("probe", "more", "gallery"),
    [
        ("shop", [], "train"),
        ("shop", FOLDER, "train"),
        ("shop", [*FOLDER, "run.task.probe.gallery=test"], "test"),
        ("train", FOLDER, "test"),
    ],
)
def test_a_gallery_apart_is_taken_unless_another_is_stated(place, tmp_path, probe, more, gallery):
    where = [f"data.path={place / 'train'}", f"data.probe={place / probe}", *more]
    holdout = ["run.task.probe.data.holdout=0.5"] if probe == "train" else []
    (run,) = resolve(parse(LISTED, "x", [*where, *holdout]), Store(tmp_path)).runs
    assert run.task.probe.gallery == gallery
    stored = run.read(run.plain())
    assert stored == run and fingerprint(stored) == fingerprint(run)


@each(
    ("overrides", "words"),
    [
        (["run.task.probe.gallery=test"], "a list of queries with a gallery apart; set gallery: t"),
        (["run.data.name=rankings"], "a list by which a task `retrieval` is judged"),
        (
            ["run.task={name: features, probe: {data: {name: rankings}}}"],
            "'rankings' is a list, which task 'features' has no use for; give it labelled images",
        ),
        (["data.probe={place}/train/0"], "expected rankings.csv, found none"),
    ],
)
def test_a_list_that_cannot_judge_is_refused(place, tmp_path, overrides, words):
    where = [f"data.path={place / 'train'}", f"data.probe={place / 'shop'}"]
    overrides = [text.replace("{place}", str(place)) for text in overrides]
    with pytest.raises(RaykdError, match=words):
        resolve(parse(LISTED, "x", [*where, *overrides]), Store(tmp_path))


def test_where_each_query_is_alone_another_gallery_is_spoken_of():
    train, test = torch.arange(8) % 4, torch.arange(4)
    judge = RetrievalSet(data=Data(name="folder"))
    with pytest.raises(ValueError, match=r"of a class, or set gallery: train, if the training"):
        Retrieval(probe=judge).check_labels(train, test, of_probe=True)
    with pytest.raises(ValueError, match=r"give two or more test images of a class$"):
        Retrieval().check_labels(train, test, of_probe=False)


def test_a_network_that_is_the_teacher_agrees_with_it_in_everything():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    metrics = Retrieval().collected(Embedded(torch.arange(40) % 4, x, x, x))
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
