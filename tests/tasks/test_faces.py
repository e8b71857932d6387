"""Students of faces: a teacher's route, what is stored, measured and released, and refusals."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core.errors import ConfigError, RaykdError
from raykd.core.record import fingerprint
from raykd.core.types import Signal
from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.methods import METHODS
from raykd.models import build
from raykd.planning.preflight import preflight
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.recipes.rco import RCO
from raykd.storage.store import Store
from raykd.tasks import Faces, FaceSet, Retrieval
from raykd.tasks.base import Embedded, headline_of
from raykd.training import inputs, weights
from raykd.training.checkpointing import read_result
from raykd.training.load_trained import finished
from raykd.training.runs import local_host, train
from tests.data.files import encoded, put
from tests.each import each
from tests.small import CPU, prepare
from tests.training.route_runs import carried

FAST = Optim(epochs=2, batch=16)
LISTED = """
run:
  model: resnet8
  data: {name: folder, holdout: 0.34}
  method: label_only
  optim: {epochs: 2, batch: 16}
  task: {name: faces, probe: {data: {name: pairs}, folds: 3, rates: [0.1, 0.05]}}
"""


def people(root: Path, first: int, count: int, each: int = 6) -> Path:
    """Folders of noisy pictures of 16 x 16 pixels, a pattern for each person."""
    for person in range(first, first + count):
        source = np.random.default_rng(person)
        pattern = np.kron(source.integers(60, 200, (4, 4, 3)), np.ones((4, 4, 1)))
        for number in range(each):
            grain = source.normal(0, 12, pattern.shape)
            image = Image.fromarray(np.clip(pattern + grain, 0, 255).astype(np.uint8))
            put(root / f"person{person}" / f"{number}.png", encoded(image, "PNG"))
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    people(root / "train", 0, 6)
    people(root / "others", 10, 6)
    people(root / "mixed", 5, 6)
    return root


@pytest.fixture(scope="module")
def store(place):
    return Store(place / "store")


def faces(store, place, name, **fields):
    return read(store, Data(name="folder", holdout=0.34, **fields), str(place / name))


@pytest.fixture(scope="module")
def data(store, place):
    return faces(store, place, "train", augment=Augment(flip=True))


@pytest.fixture(scope="module")
def task(store, place):
    probe = FaceSet(data=faces(store, place, "others"), folds=3, pairs=10, rates=(0.1, 1e-4))
    return Faces(scale=16.0, probe=probe)


@pytest.fixture(scope="module")
def teacher(data, task):
    optim = Optim(epochs=2, batch=8)
    return TeacherRun(model="resnet8x4", data=data, task=task, optim=optim, save_every=1)


def student(data, teacher, task, **fields):
    fields = {"method": METHODS["mimic_embedding"](normalise=True), "optim": FAST} | fields
    return StudentRun(model="resnet8", data=data, teacher=teacher, task=task, **fields)


def test_a_route_of_a_face_teacher_is_taught_and_judged_by_other_people(store, data, teacher, task):
    run = RCO(anchors=2).students(student(data, teacher, task))
    carried(store, run)
    last = read_result(store.path(run))["last"]
    assert [stage.teacher.anchors() for stage in run.stages()] == [(1, 2), (1, 2)]
    assert last.keys() >= {"verification", "verification_deviation", "tar_at_0.1", "rank_1"}
    assert "tar_at_0.0001" not in last  # too few pairs for it
    assert last["verification"] >= 50
    assert "verification" in read_result(store.path(teacher))["last"]
    cache = run.outputs_at(0)
    assert cache.signals() == Signal.EMBEDDING
    network = finished(store, run)
    assert network.is_backbone
    assert network.answer(torch.randn(2, 3, 16, 16)).shape == (2, 64)
    assert finished(store, teacher).answer(torch.randn(2, 3, 16, 16)).shape == (2, 256)


def test_some_people_a_step_teach_methods_of_embeddings(store, data, teacher, task):
    fields = {"scale": 16.0, "head": "adaface", "partial": 0.5, "probe": task.probe}
    run = student(data, teacher, Faces(**fields), optim=Optim(epochs=2, batch=2))
    carried(store, run)
    assert {"top1", "verification"} <= read_result(store.path(run))["last"].keys()
    with pytest.raises(ValueError, match=r"task\.partial: 0\.5 leaves a step without the logits"):
        student(data, teacher, run.task, method=METHODS["kd"](name="kd"))


def test_each_view_of_a_cache_is_what_the_live_teacher_says(store, data, teacher, task):
    mirrored = []
    for select in ("embedding", "logits"):
        method = METHODS["mimic_embedding" if select == "embedding" else "kd"]()
        cached = student(data, teacher, task, method=method, views=2)
        prepare(store, cached)
        live = cached.model_copy(update={"source": "live"})
        train_views, _ = inputs.views(store, cached, local_host(store, cached))
        sources = [inputs.teachers(store, run, CPU) for run in (cached, live)]
        for epoch in (0, 1):
            sample = train_views.batch(torch.arange(20), cached.view_at(epoch))
            stored, exact = (getattr(source(epoch)(sample), select) for source in sources)
            torch.testing.assert_close(stored, exact.half().float(), rtol=1e-3, atol=1e-4)
            mirrored.append(exact)
    assert not torch.allclose(mirrored[0], mirrored[1])  # views differ


@pytest.mark.slow
def test_methods_of_logits_find_scaled_cosines(store, data, teacher, task):
    run = student(data, teacher, task, method=METHODS["kd"](name="kd"))
    carried(store, run)
    assert Signal.LOGITS in run.outputs_at(0).signals()
    assert "agreement" in read_result(store.path(run))["last"]


@each(
    ("name", "folds", "words"),
    [
        ("mixed", 3, r"1 of its 6 people are trained on \(person5\)"),
        ("others", 6, "fold 1 of 6: expected pairs of one person and of two"),
    ],
)
def test_people_that_cannot_judge_are_refused_before_anything_is_trained(
    store, place, data, teacher, name, folds, words
):
    probe = FaceSet(data=faces(store, place, name), folds=folds)
    run = student(data, None, Faces(probe=probe), method=METHODS["label_only"](name="label_only"))
    with pytest.raises(ConfigError, match=words):
        preflight(Experiment("faces", (run,), Scale()), store)


def test_a_network_whose_last_layer_is_none_of_angles_is_refused_before_its_teacher_is_trained(
    store, place
):
    task, data = Faces(), faces(store, place, "train", resize=32)
    run = student(data, None, task, method=METHODS["label_only"]()).model_copy(
        update={"model": "torchvision/squeezenet1_0"}
    )
    with pytest.raises(ConfigError, match=r"run\.model: its last layer .*choose another network"):
        preflight(Experiment("faces", (run,), Scale()), store)


@pytest.fixture(scope="module")
def crowd(place):
    """Six people to be found, and 20 distractors, with and without folders."""
    root = people(place / "crowd" / "probes", 10, 6).parent
    for number, path in enumerate(sorted(people(place / "strangers", 20, 4, 5).glob("*/*"))):
        target = root / "distractors" / (f"a/b{number % 3}" if number % 2 else "") / f"{number}.png"
        put(target, path.read_bytes())
    return root


def test_people_are_found_among_distractors(store, place, crowd):
    text = LISTED.replace("name: pairs", "name: folder")
    where = [f"data.path={place / 'train'}", f"data.probe={crowd}"]
    (run,) = resolve(parse(text, "x", where), store).runs
    assert run.task.probe.distractors == (10, 20)
    assert fingerprint(run.read(run.plain())) == fingerprint(run)
    preflight(Experiment("faces", (run,), Scale()), store)
    train(store, run, local_host(store, run))
    last = read_result(store.path(run))["last"]
    assert 100 >= last["rank_1_among_10"] >= last["rank_1_among_20"] > 0 and "rank_1" in last
    # The same by hand, of other embeddings.
    draws = torch.Generator().manual_seed(0)
    probes, others = torch.randn(8, 5, generator=draws), torch.randn(20, 5, generator=draws)
    labels = torch.arange(8) // 2
    known, strangers = Embedded(labels, probes), Embedded(torch.full((20,), 6), others)
    probe = run.task.probe.model_copy(update={"folds": 2, "distractors": (20,)})
    found = Faces(probe=probe).judged(strangers, known, ())
    cosine = F.normalize(probes, dim=1) @ F.normalize(torch.cat([probes, others]), dim=1).T
    hits = [bool((cosine[row, row ^ 1] > cosine[row, 8:]).all()) for row in range(8)]
    assert found["rank_1_among_20"] == pytest.approx(100 * sum(hits) / 8)
    alone = Faces(probe=probe.model_copy(update={"distractors": None}))
    alone = alone.judged(Embedded(labels[:0], probes[:0]), known, ())
    assert {name: found[name] for name in alone} == alone  # distractors judge nothing else


@each(
    ("root", "numbers", "words"),
    [
        ("crowd", "[21]", r"distractors: expected at most 20, the number of .* images, got 21"),
        ("crowd", "[]", r"distractors: expected different numbers, got \[\]"),
        ("crowd", "null", r"distractors is of nobody in particular; leave .*distractors .* out"),
        ("crowd", "[5, 5]", r"distractors: expected different numbers, got \[5, 5\]"),
    ],
)
def test_distractors_that_are_not_there_are_refused(store, place, crowd, root, numbers, words):
    text = LISTED.replace("name: pairs", "name: folder")
    where = [f"data.path={place / 'train'}", f"data.probe={place / root}"]
    where.append(f"run.task.probe.distractors={numbers}")
    with pytest.raises(RaykdError, match=words):
        preflight(resolve(parse(text, "x", where), store), store)


def test_distractors_are_those_that_can_be_used_and_no_class_of_other_sets(place, crowd, tmp_path):
    root = Path(shutil.copytree(crowd, tmp_path / "crowd"))
    next((root / "distractors").rglob("*.png")).write_bytes(b"no image")
    text = LISTED.replace("name: pairs", "name: folder")
    where = [f"data.path={place / 'train'}", f"data.probe={root}", "scale.on_bad_image=skip"]
    shutil.copy(next((root / "probes").rglob("*.png")), root / "distractors" / "double.png")
    heard: list[str] = []
    (run,) = resolve(parse(text, "x", where), Store(tmp_path / "store"), heard.append).runs
    assert run.task.probe.distractors == (10, 20)
    (warning,) = [line for line in heard if line.startswith("warning")]
    assert "1 of the 36 images of probes are distractors, too" in warning
    where[0] = f"data.path={root}"
    with pytest.raises(ConfigError, match=r"run\.data: its folder distractors is of nobody"):
        resolve(parse(text, "x", where), Store(tmp_path / "store"))


@pytest.fixture(scope="module")
def listed(place):
    """A list of pairs of the other people, in three folds."""
    lines: list[str] = []
    names = [f"person{person}" for person in range(10, 16)]
    for person, other in zip(names, names[1:] + names[:1], strict=True):
        lines += [f"{person}/0.png,{person}/{number}.png,same" for number in (1, 2)]
        lines += [f"{person}/0.png,{other}/{number}.png,different" for number in (1, 2)]
    return put(place / "others" / "pairs.csv", "\n".join(lines))


def test_a_student_is_judged_by_a_list_of_pairs(store, place, listed):
    experiment = parse(LISTED, "x", [f"data.path={place / 'train'}", f"data.probe={listed}"])
    (run,) = resolve(experiment, store).runs
    preflight(Experiment("faces", (run,), Scale()), store)
    train(store, run, local_host(store, run))
    last = read_result(store.path(run))["last"]
    assert last["verification"] >= 50 and "rank_1" not in last
    # 12 pairs of two people: a rate of a tenth is told, one of a twentieth is not.
    assert "tar_at_0.1" in last and "tar_at_0.05" not in last


FEATURES = "{name: features, probe: {data: {name: pairs}}}"


@each(
    ("overrides", "words"),
    [
        (["run.task.probe.folds=25"], "expected 25 pairs or more, one in each fold, got 24"),
        (["run.task.probe.data.validation=0.2"], r"validation: a probe knows all .*leave it out"),
        (["run.data.name=pairs"], "a list by which a task `faces` is judged"),
        (
            [f"run.task={FEATURES}", "run.method=mimic_embedding", "run.teacher.model=resnet8"],
            "task 'features' has no use for",
        ),
    ],
)
def test_a_list_that_cannot_judge_is_refused(store, place, listed, overrides, words):
    where = [f"data.path={place / 'train'}", f"data.probe={listed}"]
    with pytest.raises(ConfigError, match=words):
        preflight(resolve(parse(LISTED, "x", [*where, *overrides]), store), store)


def test_a_list_s_folds_are_those_that_it_states(store, place, tmp_path):
    for person in (10, 11):
        for number in (1, 2):
            name = f"person{person}/person{person}_{number:04d}.png"
            put(tmp_path / name, (place / f"others/person{person}/{number}.png").read_bytes())
    put(tmp_path / "pairs.txt", "2 1\nperson10 1 2\nperson10 1 person11 1\n"
        "person11 1 2\nperson10 2 person11 2\n")  # fmt: skip
    where = [f"data.path={place / 'train'}", f"data.probe={tmp_path}"]
    with pytest.raises(ConfigError, match="expected the 2 that the list states, got 3"):
        resolve(parse(LISTED, "x", where), store)
    resolve(parse(LISTED, "x", [*where, "run.task.probe.folds=2"]), store)


def test_a_teacher_that_is_given_or_learns_no_labels_has_no_task(data):
    for fields in ({"weights": "sha256:00", "task": Faces()}, {"task": Retrieval()}):
        with pytest.raises(ValueError, match="leave it out"):
            TeacherRun(model="resnet8", data=data, **fields)


@each(
    ("metrics", "words"),
    [
        ({"top1": 12.5, "verification": 75.0}, "verification 75.00 %"),
        ({"loss": 1.0, "top1": 12.5}, "top-1 12.50 %"),  # no probe in this epoch
        ({"map": 2.0, "recall_at_1": 3.0}, "recall@1 3.00 %"),
        ({"loss": 1.0}, ""),
    ],
)
def test_an_epoch_is_spoken_of_by_what_students_are_compared_by(metrics, words):
    assert headline_of(metrics) == words


def test_a_divergence_of_logits_chooses_no_anchors(data, teacher, task):
    held = data.model_copy(update={"validation": 0.2})
    run = student(held, teacher.model_copy(update={"data": held}), task)
    RCO(select="greedy").students(run)
    with pytest.raises(ValueError, match=r"use rco\.measure: loss"):
        RCO(select="greedy", measure="kl").students(run)


def test_a_task_at_its_default_leaves_a_teacher_s_fingerprint_alone(data):
    from raykd.core.record import canonical

    plain = TeacherRun(model="resnet8", data=data)
    assert "task" not in canonical(plain)
    assert "faces" in canonical(TeacherRun(model="resnet8", data=data, task=Faces()))


def test_a_face_student_starts_from_a_classifier_s_weights_but_for_the_last_layer(
    store, data, teacher, task
):
    plain = build("resnet8", 10)
    content = safetensors.torch.save(plain.network.state_dict())
    name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    put(store.root / "weights" / name, content)
    run = student(data, teacher, task, weights=f"sha256:{name}")
    network = weights.build_network(run)
    before = network.classifier.weight.clone()
    weights.load_start(store, run, network)
    assert torch.equal(network.classifier.weight, before)
    for one, other in zip(network.stages.values(), plain.stages.values(), strict=True):
        assert all(map(torch.equal, one.parameters(), other.parameters()))
