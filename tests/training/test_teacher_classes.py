"""Teachers with classes and a size of their own, from the weights to what a student reads."""

import hashlib

import pytest
import safetensors.torch
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Signal
from raykd.data.dataset import open_images
from raykd.export.folder import export
from raykd.methods.kd import KD
from raykd.models import build
from raykd.recipes import Optim, TeacherRun
from raykd.storage.store import Store
from raykd.training import inputs, weights
from raykd.training.cache_builder import CacheBuild, needed_bytes
from raykd.training.checkpointing import read_result
from raykd.training.initial_state import untrained
from raykd.training.microbenchmark import forward_of, step_of
from raykd.training.result import teacher_said
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import CPU, build_here, digits, prepare, student_run, teacher_run, trained

WIDE = 14  # outputs of the given teacher; the digits are those from 2 to 11
SHIFTED = tuple((n + 2,) for n in range(10))
JOINED = (*SHIFTED[:9], (11, 0, 13))
ONE = Optim(epochs=1, batch=32)


def given(store: Store, state: dict[str, torch.Tensor], **changes) -> TeacherRun:
    """A teacher with given weights, which are in the store."""
    content = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
    name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    (store.root / "weights").mkdir(exist_ok=True, parents=True)
    (store.root / "weights" / name).write_bytes(content)
    values = {"model": "resnet8", "data": digits(store), "weights": f"sha256:{name}"}
    return TeacherRun(**(values | changes))


def wide_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build("resnet8", WIDE).network.state_dict()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def live_and_cached(store, run, rows=24):
    """Outputs of a run's teacher for some samples: from the network, and from its cache."""
    images = open_images(store, run.data)[0]
    views = inputs.views_of(images, run.shown(), CPU, inputs.EVERY_EPOCH)
    batch = views.batch(torch.arange(rows), 0)
    recipe = run.outputs_at(0)
    cache = inputs.open_cache(store, recipe, [0], CPU)
    return (
        inputs.live_teacher(store, recipe, CPU)(batch),
        cache.take(batch.ids, batch.view, recipe.signals()),
        batch,
    )


def plain(teacher, batch: Batch) -> torch.Tensor:
    """Logits of the network itself, whose normalisation is that of the data."""
    network = build("resnet8", WIDE).eval()
    network.network.load_state_dict(wide_state())
    with torch.no_grad():
        return network(batch.pixels)


@pytest.mark.slow
@each("groups", [SHIFTED, JOINED], ids=["one to one", "many to one"])
def test_a_cache_through_a_map_has_what_the_live_teacher_says(store, groups):
    teacher = given(store, wide_state(), outputs=WIDE, classes=groups)
    run = student_run(store, teacher=teacher, optim=ONE)
    prepare(store, run)
    live, cached, batch = live_and_cached(store, run)
    assert live.logits.shape == cached.logits.shape == (24, 10)
    torch.testing.assert_close(cached.logits, live.logits, rtol=1e-3, atol=1e-3)  # float16
    sums = torch.stack([plain(teacher, batch)[:, [*g]].exp().sum(1) for g in groups], dim=1)
    torch.testing.assert_close(live.logits.softmax(1), sums / sums.sum(1, keepdim=True))


def test_saved_weights_are_those_of_the_plain_network(store):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED)
    prepare(store, student_run(store, teacher=teacher, optim=ONE))
    state = weights.load_state(weights.anchor_path(store, teacher, 0))
    expected = wide_state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert "top1" in read_result(store.path(teacher))["last"]


@pytest.mark.slow
def test_the_map_of_the_identity_changes_no_number(store):
    torch.manual_seed(0)
    state = build("resnet8", 10).network.state_dict()
    students = []
    for classes in (None, tuple((n,) for n in range(10))):
        teacher = given(store, state, classes=classes)
        for source in ("cache", "live"):
            run = student_run(store, KD(), teacher=teacher, optim=ONE, source=source)
            prepare(store, run)
            students.append(trained(store, run))
    cached, live, mapped_cached, mapped_live = students
    assert (cached, live) == (mapped_cached, mapped_live)


def test_every_place_that_makes_the_teacher_makes_it_with_its_own_outputs(store):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED, size=12)
    run = student_run(store, "fitnet", teacher=teacher, optim=ONE)
    _, helpers = untrained(run, torch.arange(40) % 10)
    assert helpers is not None
    step_of(run, torch.arange(96) % 10, CPU)()
    forward_of(teacher, run.data, 4, CPU)()
    recipe = student_run(store, "mimic_embedding", teacher=teacher, optim=ONE).outputs_at(0)
    assert needed_bytes(recipe, 10) > 10 * recipe.stored().bytes_per_row(10, None)


@pytest.mark.slow
def test_a_teacher_s_size_enlarges_the_pixels_of_each_view(store):
    enlarged = given(store, wide_state(), outputs=WIDE, classes=SHIFTED, size=20)
    run = student_run(store, teacher=enlarged, optim=ONE)
    prepare(store, run)
    live, cached, batch = live_and_cached(store, run)
    torch.testing.assert_close(cached.logits, live.logits, rtol=1e-3, atol=1e-3)
    shape = {"size": (20, 20), "mode": "bicubic", "antialias": True}
    pixels = torch.nn.functional.interpolate(batch.pixels, **shape)
    network = build("resnet8", WIDE).eval()
    network.network.load_state_dict(wide_state())
    with torch.no_grad():
        expected = network(pixels)[:, 2:12]
    torch.testing.assert_close(live.logits, expected)
    # At the size that the images have it changes nothing, bit for bit.
    same = given(store, wide_state(), outputs=WIDE, classes=SHIFTED, size=8)
    other = given(store, wide_state(), outputs=WIDE, classes=SHIFTED)
    for teacher in (same, other):
        prepare(store, student_run(store, teacher=teacher, optim=ONE))
    logits = [
        live_and_cached(store, student_run(store, teacher=teacher, optim=ONE))[0].logits
        for teacher in (same, other)
    ]
    assert torch.equal(*logits)


def test_gradients_come_back_to_the_pixels_that_the_student_has(store):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED, size=20)
    run = student_run(store, "jacobian", teacher=teacher, optim=ONE, source="live")
    prepare(store, run)
    images = open_images(store, run.data)[0]
    batch = inputs.views_of(images, run.shown(), CPU, inputs.EVERY_EPOCH).batch(torch.arange(4), 0)
    live = inputs.live_teacher(store, run.outputs_at(0), CPU, run.method.needs())(batch)
    assert live.pixels.shape == batch.pixels.shape
    (gradient,) = torch.autograd.grad(live.logits.sum(), live.pixels)
    assert gradient.shape == batch.pixels.shape and gradient.abs().sum() > 0


def test_a_teacher_of_other_classes_is_loaded_and_not_tested(store):
    teacher = given(store, wide_state(), outputs=WIDE)
    train(store, teacher, local_host(store, teacher))
    assert "top1" not in read_result(store.path(teacher))["last"]
    sentence, warning = teacher_said(store, teacher)
    assert sentence.startswith("the given teacher resnet8 has embeddings, and no logits")
    assert warning is None
    network = weights.load_teacher(store, teacher, 0, CPU)
    assert network.outputs(torch.zeros(1, 3, 8, 8), Signal.LOGITS).logits.shape == (1, WIDE)


@pytest.mark.slow
@each("outputs", [WIDE, 0])
def test_students_read_the_embeddings_of_a_teacher_of_other_classes(store, outputs):
    state = wide_state()
    if not outputs:
        state = {name: value for name, value in state.items() if "classifier" not in name}
    teacher = given(store, state, outputs=outputs)
    students = []
    for source in ("cache", "live"):
        run = student_run(store, "mimic_embedding", teacher=teacher, optim=ONE, source=source)
        prepare(store, run)
        students.append(trained(store, run))
        last = read_result(store.path(run))["last"]
        assert "top1" in last and "agreement" not in last and "kl" not in last
    assert run.outputs_at(0).signals() == Signal.EMBEDDING and not run.test_caches()
    assert len(students[0]) == len(students[1])


@pytest.mark.slow
def test_a_teacher_that_is_trained_here_on_other_images_is_mapped(store):
    teacher = teacher_run(store, classes=((1,), (3, 5)))
    two = student_run(store, optim=ONE, teacher=teacher)
    prepare(store, two)
    live, _, _ = live_and_cached(store, two)
    assert live.logits.shape == (24, 2)


@pytest.mark.slow
def test_builds_of_caches_take_the_mapped_rows(store):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED)
    run = student_run(store, teacher=teacher, optim=ONE).outputs_at(0)
    prepare(store, student_run(store, teacher=teacher, optim=ONE))
    build_here(CacheBuild(store, run, [0, 1]), CPU)
    assert inputs.open_cache(store, run, [1], CPU).take(torch.arange(3), 1).logits.shape == (3, 10)


def test_a_teacher_with_a_map_is_not_exported(store, tmp_path):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED)
    with pytest.raises(ConfigError, match="resnet8: a teacher with classes, outputs or a size of"):
        export(store, teacher, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_simkd_says_that_a_map_is_no_linear_classifier(store):
    teacher = given(store, wide_state(), outputs=WIDE, classes=JOINED)
    run = student_run(store, "simkd", teacher=teacher, optim=ONE)
    with pytest.raises(ConfigError, match="classifies by Linear, ClassMap"):
        step_of(run, torch.arange(96) % 10, CPU)
