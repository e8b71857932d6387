"""Students that need other students: stages of a route, one after the other, and assistants."""

import pytest
import safetensors.torch
import torch
from torch import nn

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import CacheCorrupt, WorkFailed
from raykd.data.dataset import open_images, open_split
from raykd.data.loading.loader import Views
from raykd.data.transforms.augment import Augment
from raykd.launch.executor import execute
from raykd.methods import METHODS
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.kd import KD
from raykd.methods.mimic import MimicEmbedding
from raykd.methods.ofd import OFD, margins
from raykd.methods.simkd import SimKD
from raykd.methods.skd import SKD
from raykd.models import build
from raykd.planning.plan import plan
from raykd.recipes import RCO, Optim, StudentRun, TeacherRun
from raykd.recipes.rco import along
from raykd.storage.store import Store, read_json, write_json
from raykd.teachers.anchor_route import Route
from raykd.tracking.jsonl import read_metrics
from raykd.training import initial_state, weights
from raykd.training import inputs as prepare
from raykd.training import runs as fit
from raykd.training.cache_builder import CacheBuild
from raykd.training.checkpointing import Checkpoints
from raykd.training.evaluation import evaluate
from raykd.training.hosts.base import LocalHost
from raykd.training.loop import Sources, distil
from raykd.training.result import result_of
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import CPU, build_here, digits
from tests.tiers import slow_but
from tests.training.route_runs import (
    EPOCHS,
    QUIET,
    carried,
    released,
    state,
    store_with_teacher,
    student_below,
    twin,
)

CONTRAST = CRD(negatives=64)
# What a stage goes on with: the student alone, or these helpers of the stage before, too.
GOES_ON_WITH = {
    KD(): (),
    SKD(): (),
    FitNet(): ("regressor.",),
    MimicEmbedding(): ("projection.",),
    CONTRAST: ("student.", "teacher."),
    SimKD(): ("projector.",),
    OFD(): tuple(f"stage{number}.fit." for number in range(1, 4)),
}
QUICK = [MimicEmbedding(), CONTRAST]
METHOD = each("method", slow_but(GOES_ON_WITH, QUICK), ids=lambda method: method.name)


def trained_of(store: Store, **changes) -> StudentRun:
    """A student below a teacher of four epochs."""
    return student_below(store, 4, **changes)


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    """A store with the teacher."""
    return store_with_teacher(tmp_path_factory.mktemp("store"), 4)


@pytest.fixture(scope="module")
def student_store(teacher_store, tmp_path_factory):
    """A store in which the students stay that tests have in common."""
    return twin(teacher_store, tmp_path_factory.mktemp("done") / "store")


class Stop(Exception):
    """The process has gone away."""


def stopping(monkeypatch, epochs: int) -> None:
    """Let this process end after some epochs, once their checkpoint is written."""
    record, left = Checkpoints.record, [epochs]

    def dying(self, state, *, last):
        record(self, state, last=last)
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    monkeypatch.setattr(Checkpoints, "record", dying)


def assert_goes_on(
    reference: Store, resumed: Store, run: StudentRun, monkeypatch, epochs: int
) -> None:
    """Assert that a run which stops after some epochs ends like one that does not stop."""
    carried(reference, run)
    with monkeypatch.context() as patch:
        stopping(patch, epochs)
        with pytest.raises(Stop):
            carried(resumed, run)
    carried(resumed, run)
    assert released(resumed, run) == released(reference, run)


# What a stage begins with


def by_hand(store: Store, stage: StudentRun, kept: tuple[str, ...], folder):
    """A stage as an ordinary run of its own, whose weights were put in place before it began."""
    alone = stage.model_copy(update={"after": None})
    host = LocalHost(Checkpoints(folder), CPU)
    train, _ = prepare.views(store, alone, host)
    learner = initial_state.learner(store, alone, host, train.images.targets)
    learner.student.network.load_state_dict(state(store, stage.after))
    helpers = learner.helpers.state_dict()
    before = state(store, stage.after, weights.STAGE)
    helpers |= {name: value for name, value in before.items() if name.startswith(kept)}
    learner.helpers.load_state_dict(helpers)
    folder.mkdir(exist_ok=True)
    distil(alone, learner, Sources(prepare.teachers(store, alone, CPU), train), host)
    return learner


def equal(one, other) -> bool:
    """True where two states have the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def at_its_beginning(store: Store, run: StudentRun):
    """Student and helpers of a run before its first step."""
    targets = open_images(store, run.data)[0].targets
    return initial_state.learner(store, run, local_host(store, run), targets)


@pytest.mark.slow
@METHOD
def test_a_stage_goes_on_with_the_weights_of_the_one_before_and_nothing_else(
    student_store, tmp_path, method
):
    store = student_store
    run = along(trained_of(store, method=method), (1, 4), "multi_stage")
    carried(store, run)
    begun, fresh = at_its_beginning(store, run), at_its_beginning(store, run.after)
    assert equal(begun.student.network.state_dict(), state(store, run.after))
    ended, new = state(store, run.after, weights.STAGE), fresh.helpers.state_dict()
    for name, value in begun.helpers.state_dict().items():
        if name.startswith(GOES_ON_WITH[method]):
            assert torch.equal(value, ended[name])
        elif name.startswith("memory."):
            assert name not in ended
            assert torch.equal(value, new[name])
        elif name.endswith("known"):
            assert not value
    trained = {name for name, _ in begun.helpers.named_parameters() if "classifier" not in name}
    assert all(name.startswith(GOES_ON_WITH[method]) for name in trained), "nothing is forgotten"
    # The optimiser and the schedule are fresh, as in a run of its own.
    learner = by_hand(store, run, GOES_ON_WITH[method], tmp_path / "alone")
    found = state(store, run)
    assert equal(found, learner.student.network.state_dict())
    assert not equal(found, state(store, run.after))
    found = state(store, run, weights.STAGE)
    assert all(torch.equal(v, found[k]) for k, v in learner.helpers.named_parameters())


@pytest.mark.slow
@METHOD
def test_images_that_are_only_measured_on_leave_no_trace(student_store, method):
    run = trained_of(student_store, method=method, optim=Optim(epochs=1, batch=32))
    learner, host = at_its_beginning(student_store, run).train(), local_host(student_store, run)
    _, test = prepare.views(student_store, run, host)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    evaluate(learner.student, run.method, learner.helpers, test, None, host)
    assert equal(learner.state_dict(), before)


@pytest.mark.slow
def test_a_stage_has_the_whole_schedule_and_begins_with_averaged_weights(student_store, tmp_path):
    store = student_store
    optim = Optim(epochs=2, batch=32, schedule="cosine", warmup_epochs=1, lr=0.03, ema=0.5)
    run = along(trained_of(store, optim=optim), (1, 4), "multi_stage")
    carried(store, run)
    rates = [[m["lr"] for m in read_metrics(store.path(stage))] for stage in run.stages()]
    assert rates[0] == rates[1]
    assert [m["epoch"] for m in read_metrics(store.path(run))] == [0, 1]
    plain = by_hand(store, run, (), tmp_path / "alone").student.network.state_dict()
    averaged = state(store, run)
    assert not equal(plain, averaged)
    begun = at_its_beginning(store, run)
    assert equal(begun.student.network.state_dict(), state(store, run.after))


@pytest.mark.slow
def test_a_stage_of_another_method_begins_with_helpers_of_its_own(student_store):
    store = student_store
    before = trained_of(store, method=FitNet())
    run = trained_of(store, method=FitNet(weight=1.0), after=before)
    carried(store, run)
    begun = at_its_beginning(store, run)
    fresh = at_its_beginning(store, run.model_copy(update={"after": None}))
    assert equal(begun.student.network.state_dict(), state(store, before))
    assert equal(begun.helpers.state_dict(), fresh.helpers.state_dict())


@pytest.mark.slow
def test_a_stage_does_not_go_on_after_weights_that_were_altered_or_removed(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    run = along(trained_of(store, method=MimicEmbedding()), (1, 4), "multi_stage")
    carried(store, run.after)
    for name in (weights.STUDENT, weights.STAGE):
        path = store.path(run.after) / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"!")
        with pytest.raises(CacheCorrupt, match=f"{name}: the weights were truncated or altered"):
            at_its_beginning(store, run)
        path.write_bytes(data)
    path.unlink()
    with pytest.raises(CacheCorrupt, match=weights.STAGE):
        carried(store, run)


@pytest.mark.slow
def test_a_stage_below_another_teacher_begins_with_helpers_of_its_own(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    before = trained_of(store, method=MimicEmbedding())
    (tmp_path / "store" / "teachers").unlink()
    (tmp_path / "store" / "teachers").mkdir()
    (store.path(before.teacher)).symlink_to(teacher_store.path(before.teacher))
    # Its embedding is of another width.
    other = TeacherRun(model="resnet8", data=before.data, optim=EPOCHS)
    run = trained_of(store, method=MimicEmbedding(), teacher=other, after=before)
    carried(store, run)
    assert store.has(run)


# What the supervising checkpoint sets


STAGES = ["one_stage", "multi_stage"]


class Watching(LocalHost):
    """This process, which notes the helpers after every epoch."""

    def __init__(self, store: Store, run: StudentRun) -> None:
        super().__init__(Checkpoints(store.path(run)), CPU)
        self.seen: list[dict[str, torch.Tensor]] = []

    def report(self, metrics, state, *, last):
        found = state()["learner"].items()
        self.seen.append({k.removeprefix("helpers."): v.clone() for k, v in found})
        super().report(metrics, state, last=last)


def watched(store: Store, run: StudentRun) -> list[dict[str, torch.Tensor]]:
    """The helpers after every epoch of a run whose teachers are there."""
    for job in plan([run], store.has).caches:
        build_here(CacheBuild(store, job.run, job.views), CPU)
    host = Watching(store, run)
    train(store, run, host)
    return host.seen


def checkpoint(store: Store, run: StudentRun, anchor: int):
    """The teacher as it was after some epochs."""
    return weights.load_teacher(store, run.teacher, anchor, CPU).eval()


def radius(store: Store, run: StudentRun, anchor: int, view: int) -> float:
    """The mean over training rows of the deviation of a checkpoint's logits, row by row."""
    rows = Views(open_images(store, run.data)[0], run.shown()).batch(torch.arange(96), view)
    with torch.no_grad():
        logits = checkpoint(store, run, anchor)(rows.pixels).double().numpy()
    return float(sum(row.std() for row in logits) / len(logits))


@pytest.mark.slow
@pytest.mark.parametrize("stages", slow_but(STAGES, ["multi_stage"]))
def test_the_radius_of_a_sphere_is_that_of_the_supervising_checkpoint(
    teacher_store, tmp_path, stages
):
    store = twin(teacher_store, tmp_path / "store")
    run = along(trained_of(store, method=SKD()), (1, 4), stages)
    radii = set()
    for stage in run.stages():
        seen = watched(store, stage)
        assert len(seen) == 2
        for epoch, helpers in enumerate(seen):
            anchor = stage.anchor_at(epoch)
            first = next(e for e in range(2) if stage.anchor_at(e) == anchor)
            expected = radius(store, stage, anchor, stage.view_at(first))
            found = float(helpers["radius.value"])
            assert found == pytest.approx(expected, rel=1e-3)  # float16 logits
            radii.add(found)
        assert state(store, stage, weights.HELPERS)["radius.value"] == helpers["radius.value"]
    assert len(radii) == 2


def test_a_radius_that_is_given_stays_as_it_is(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    run = along(trained_of(store, method=SKD(radius=2.5)), (1, 4), "one_stage")
    assert {float(helpers["radius.value"]) for helpers in watched(store, run)} == {2.5}


@pytest.mark.slow
@pytest.mark.parametrize("stages", slow_but(STAGES, ["one_stage"]))
def test_a_borrowed_classifier_is_that_of_the_supervising_checkpoint(
    teacher_store, tmp_path, stages
):
    store = twin(teacher_store, tmp_path / "store")
    run = along(trained_of(store, method=SimKD()), (1, 4), stages)
    for stage in run.stages():
        for epoch, helpers in enumerate(watched(store, stage)):
            theirs = checkpoint(store, stage, stage.anchor_at(epoch)).classifier
            assert torch.equal(helpers["classifier.weight"], theirs.weight)
            assert torch.equal(helpers["classifier.bias"], theirs.bias)


@pytest.mark.slow
@pytest.mark.parametrize("stages", slow_but(STAGES, ["multi_stage"]))
def test_margins_are_those_of_the_supervising_checkpoint(teacher_store, tmp_path, stages):
    store = twin(teacher_store, tmp_path / "store")
    run = along(trained_of(store, method=OFD()), (1, 4), stages)
    for stage in run.stages():
        for epoch, helpers in enumerate(watched(store, stage)):
            norms = checkpoint(store, stage, stage.anchor_at(epoch)).norms
            for name in ("stage1", "stage2", "stage3"):
                expected = margins(norms[name].bias, norms[name].weight).float()
                assert torch.equal(helpers[f"{name}.margin"], expected)


# Plain distillation


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", slow_but([KD(), SKD(), MimicEmbedding()], [KD()]), ids=lambda m: m.name
)
def test_a_route_of_the_last_epoch_alone_is_plain_distillation(student_store, method):
    store = student_store
    plain = trained_of(store, method=method)
    explicit = plain.model_copy(update={"route": Route(anchors=(4,))})
    for stages in ("multi_stage", "one_stage"):
        assert along(plain, (4,), stages) == plain
        assert RCO(interval=4, stages=stages).students(plain) == plain
    carried(store, plain, explicit)
    assert released(store, plain) == released(store, explicit)
    assert store.path(plain) != store.path(explicit)


# 3 is in the middle of the second stage, 2 and 4 are between the last epoch and the artefact.
STOPS = slow_but(
    [(KD(), 2), (KD(), 4), (MimicEmbedding(), 3), (CONTRAST, 3)], [(MimicEmbedding(), 3)]
)
STOPS_OF_ONE = slow_but([(SKD(), 3), (KD(), 2), (SimKD(), 3)], [(SKD(), 3)])


def stop(value) -> str:
    """Name of a test for a method, or for the number of epochs before the end of a process."""
    return getattr(value, "name", str(value))


# What is cached


READINGS = [
    (KD(), "all", "one_stage"),
    (KD(), 2, "one_stage"),
    (KD(), 2, "multi_stage"),
    (MimicEmbedding(), "all", "multi_stage"),
    (FitNet(), 2, "one_stage"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "views", "stages"), slow_but(READINGS, [READINGS[3]]), ids=stop)
def test_a_route_has_cached_exactly_what_its_epochs_read(
    teacher_store, tmp_path, method, views, stages
):
    store = twin(teacher_store, tmp_path / "store")
    (tmp_path / "store" / "caches").unlink()
    optim = Optim(epochs=3, batch=32)
    chosen = trained_of(store, method=method, views=views, optim=optim)
    run = along(chosen, (1, 2, 4), stages)
    execute(Experiment("small", (run,), Scale()), store, QUIET, students=False)
    found = set()
    for folder in (store.root / "caches").iterdir():
        recipe = read_json(folder / "recipe.json")
        key = (recipe["split"], recipe["anchor"])
        shards = {file.name for file in folder.glob("view-*.arrow")}
        found |= {(*key, int(name.split("-")[1])) for name in shards}
    expected = set()
    for stage in run.stages():
        anchors = [stage.route.at(e) if stage.route else 4 for e in range(3)]
        seen = [epoch % (3 if views == "all" else views) for epoch in range(3)]
        expected |= {("test", anchors[-1], 0)}
        if method != FitNet():  # which asks the network
            expected |= {("train", *pair) for pair in zip(anchors, seen, strict=True)}
    assert found == expected


# Going on


@pytest.mark.slow
@pytest.mark.parametrize(("method", "epochs"), STOPS, ids=stop)
def test_stages_that_stop_go_on_to_equal_weights(
    teacher_store, student_store, tmp_path, monkeypatch, method, epochs
):
    run = along(trained_of(teacher_store, method=method), (1, 4), "multi_stage")
    reference, resumed = student_store, twin(teacher_store, tmp_path / "cut")
    carried(reference, run)
    with monkeypatch.context() as patch:
        stopping(patch, epochs)
        with pytest.raises(Stop):
            carried(resumed, run)
    assert resumed.has(run.after) == (epochs > 2)
    assert not resumed.has(run)
    outcome = carried(resumed, run)
    assert outcome.made["students"] == (1 if epochs > 2 else 2)
    for stage in run.stages():
        assert released(resumed, stage) == released(reference, stage)
        for name in (weights.STAGE, weights.HELPERS):
            assert equal(state(resumed, stage, name), state(reference, stage, name))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", slow_but([1, 2], [2]))
def test_averaged_weights_are_released_however_late_a_run_stopped(
    teacher_store, student_store, tmp_path, monkeypatch, epochs
):
    run = trained_of(teacher_store, optim=EPOCHS.model_copy(update={"ema": 0.5}))
    assert_goes_on(student_store, twin(teacher_store, tmp_path / "cut"), run, monkeypatch, epochs)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "epochs"), STOPS_OF_ONE, ids=stop)
def test_one_stage_that_stops_goes_on_at_the_same_checkpoint(
    teacher_store, student_store, tmp_path, monkeypatch, method, epochs
):
    optim = Optim(epochs=4, batch=32)
    run = along(trained_of(teacher_store, method=method, optim=optim), (1, 2, 4), "one_stage")
    reference, resumed = student_store, twin(teacher_store, tmp_path / "cut")
    carried(reference, run)
    with monkeypatch.context() as patch:
        stopping(patch, epochs)
        with pytest.raises(Stop):
            carried(resumed, run)
    asked: list[int] = []
    load, open_cache = weights.load_teacher, prepare.open_cache

    def loading(store, teacher, anchor, device):
        asked.append(anchor)
        return load(store, teacher, anchor, device)

    def opening(store, logits, views, device):
        if logits.split == "train":
            asked.append(logits.anchor)
        return open_cache(store, logits, views, device)

    monkeypatch.setattr(weights, "load_teacher", loading)
    monkeypatch.setattr(prepare, "open_cache", opening)
    carried(resumed, run)
    left = [run.route.at(epoch) for epoch in range(epochs, 4)]
    assert list(dict.fromkeys(asked)) == list(dict.fromkeys(left))
    assert released(resumed, run) == released(reference, run)
    assert equal(state(resumed, run, weights.HELPERS), state(reference, run, weights.HELPERS))
    assert len(read_metrics(resumed.path(run))) == 4


# Assistants


def assisted(store: Store, *models: str, **changes) -> StudentRun:
    """A student below some assistants, the first of which learns from the teacher."""
    teacher = trained_of(store).teacher
    for model in models:
        teacher = trained_of(store, model=model, teacher=teacher)
    return trained_of(store, teacher=teacher, **changes)


def test_each_of_a_chain_learns_from_the_one_before(student_store):
    store = student_store
    run = assisted(store, "resnet8", "resnet8")
    carried(store, run)
    second, first = run.teacher, run.teacher.teacher
    steps = ((run, second, 2), (second, first, 2), (first, first.teacher, 4))
    for student, teacher, anchor in steps:
        recipe = student.outputs_at(1)
        assert (recipe.teacher, recipe.anchor) == (teacher, anchor)
        batch = Views(open_images(store, run.data)[0], run.shown()).batch(torch.arange(96), 1)
        cached = prepare.open_cache(store, recipe, [1], CPU).take(batch.ids, 1).logits
        network = build(teacher.model, 10)
        file = "weights-0004.safetensors" if anchor == 4 else "weights.safetensors"
        network.network.load_state_dict(state(store, teacher, file))
        with torch.no_grad():
            live = network.eval()(batch.pixels)
        span = (live.amax(1, keepdim=True) - live).amax()
        assert (cached - live).abs().max() <= span * 2**-11 + 1e-5  # float16 below the maximum


@pytest.mark.slow
def test_an_assistant_is_the_student_that_it_would_be_alone(teacher_store, student_store, tmp_path):
    alone = twin(teacher_store, tmp_path / "alone")
    run = assisted(teacher_store, "resnet8")
    carried(student_store, run)
    carried(alone, run.teacher)
    assert released(student_store, run.teacher) == released(alone, run.teacher)


@pytest.mark.slow
def test_assistants_are_trained_once_for_all_students_below_them(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    first, second = (assisted(store, "resnet8", seed=seed) for seed in (0, 1))
    assert carried(store, first).made["students"] == 2
    both = carried(store, first, second)
    assert (both.made["students"], both.reused["students"]) == (1, 2)


@pytest.mark.slow
def test_a_copy_of_the_teacher_as_an_assistant_teaches_what_the_teacher_does(
    teacher_store, tmp_path
):
    store = twin(teacher_store, tmp_path / "store")
    run = assisted(store, "resnet8x4")
    carried(store, run.teacher, trained_of(store))
    network = teacher_store.path(run.teacher.teacher) / "weights-0004.safetensors"
    path = store.path(run.teacher)
    (path / "weights.safetensors").write_bytes(network.read_bytes())
    result = read_json(path / "result.json")
    write_json(path / "result.json", result | {"weights": weights.checksums(path)})
    carried(store, run)
    assert released(store, run) == released(store, trained_of(store))


@pytest.mark.slow
@pytest.mark.parametrize("method", [FitNet(), METHODS["sakd"](mode="both")], ids=lambda m: m.name)
def test_an_assistant_can_be_asked_in_person(student_store, method):
    store = student_store
    run = assisted(store, "resnet14", method=method)
    carried(store, run)
    assert store.has(run)


@pytest.mark.slow
def test_what_stands_below_a_failed_assistant_is_left_out_and_others_are_trained(
    teacher_store, tmp_path
):
    store = twin(teacher_store, tmp_path / "store")
    good = assisted(store, "resnet8")
    worse = Optim(epochs=2, batch=32, lr=1e30)
    bad = trained_of(store, teacher=good.teacher.model_copy(update={"optim": worse}))
    with pytest.raises(WorkFailed, match="not finite"):
        carried(store, bad, good)
    assert store.has(good)
    assert not store.has(bad)
    assert not store.has(bad.teacher)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", slow_but([1, 3], [3]))
def test_a_chain_that_stops_goes_on_to_equal_weights(
    teacher_store, student_store, tmp_path, monkeypatch, epochs
):
    run = assisted(teacher_store, "resnet8")
    assert_goes_on(student_store, twin(teacher_store, tmp_path / "cut"), run, monkeypatch, epochs)


# Images to choose by


@pytest.mark.slow
def test_every_epoch_is_measured_on_the_validation_images(student_store):
    store = student_store
    run = trained_of(store)
    carried(store, run)
    for folder in (store.path(run), store.path(run.teacher)):
        history = read_metrics(folder)
        for name in ("validation_top1", "validation_top5", "validation_loss"):
            assert all(name in metrics for metrics in history)
    held = open_split(store, run.data, "validation")
    pixels = held.pixels.permute(0, 3, 1, 2).double() / 255
    constants = torch.tensor([run.data.mean, run.data.std]).double()
    mean, std = constants.view(2, 1, 3, 1, 1)
    network = build("resnet8", 10)
    network.network.load_state_dict(state(store, run))
    with torch.no_grad():
        logits = network.eval()(((pixels - mean) / std).float()).double()
    last = read_metrics(store.path(run))[-1]
    hits = int((logits.argmax(1) == held.targets).sum())
    assert last["validation_top1"] == pytest.approx(100 * hits / len(held))
    expected = nn.functional.cross_entropy(logits, held.targets)
    assert last["validation_loss"] == pytest.approx(float(expected), rel=1e-4)  # float32


@pytest.mark.slow
def test_a_run_without_images_to_choose_by_says_nothing_of_them(student_store):
    store = student_store
    data = digits(store, limit=64)
    run = StudentRun(model="resnet8", data=data, optim=EPOCHS)
    carried(store, run)
    assert not any("validation" in key for m in read_metrics(store.path(run)) for key in m)


def test_the_best_epoch_is_chosen_by_the_validation_images(teacher_store):
    run = trained_of(teacher_store)
    history = [
        {"epoch": 0, "loss": 1.0, "top1": 90.0, "validation_top1": 50.0, "seconds": 1.0},
        {"epoch": 1, "loss": 1.0, "top1": 60.0, "validation_top1": 70.0, "seconds": 1.0},
        {"epoch": 2, "loss": 1.0, "top1": 95.0, "validation_top1": 70.0, "seconds": 1.0},
        {"epoch": 3, "loss": 0.1, "top1": 80.0, "validation_top1": 60.0, "seconds": 1.0},
    ]
    host, parts = local_host(teacher_store, run), [nn.ModuleDict()]
    assert result_of(run, parts, history, host)["best"]["epoch"] == 1
    plain = [{k: v for k, v in m.items() if k != "validation_top1"} for m in history]
    assert result_of(run, parts, plain, host)["best"]["epoch"] == 2
    assert result_of(run, parts, history, host)["last"]["epoch"] == 3


# The statistics of a route's checkpoints


def naive_statistics(network, pixels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean and unbiased variance of what comes to every batch norm, averaged over batches."""
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    hooks = []
    for name, module in network.network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            seen[name] = []

            def note(_, inputs, found=seen[name]):
                rows = inputs[0].double().transpose(0, 1).flatten(1)
                found.append((rows.mean(1), rows.var(1)))

            hooks.append(module.register_forward_pre_hook(note))
    network.train()
    with torch.no_grad():
        for batch in pixels:
            network(batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, values in seen.items():
        means, variances = zip(*values, strict=True)
        found[f"{name}.running_mean"] = torch.stack(means).mean(0)
        found[f"{name}.running_var"] = torch.stack(variances).mean(0)
    return found


def test_refreshed_statistics_are_those_of_a_pass_over_all_images(
    teacher_store, tmp_path, monkeypatch
):
    size = 48  # of a chunk
    monkeypatch.setattr(fit, "BATCH", size)
    store = Store(tmp_path / "store")
    store.root.mkdir()
    (store.root / "images").symlink_to(teacher_store.root / "images")
    data = digits(store, limit=96, augment=Augment(pad=1))
    plain = TeacherRun(model="resnet8", data=data, optim=EPOCHS, save_every=1)
    fresh = plain.model_copy(update={"refresh_statistics": True})
    for teacher in (plain, fresh):
        train(store, teacher, local_host(store, teacher))
    views = Views(open_images(store, data)[0], data)
    for epoch in (1, 2):
        file = f"weights-{epoch:04d}.safetensors"
        before, after = (safetensors.torch.load_file(store.path(t) / file) for t in (plain, fresh))
        network = weights.load_teacher(store, plain, epoch, CPU)
        ids = torch.arange(96).split(size)
        expected = naive_statistics(network, [views.batch(i, epoch - 1).pixels for i in ids])
        assert len(expected) == 2 * sum("running_mean" in name for name in before)
        for name, value in before.items():
            if name in expected:
                # float32 against float64.
                assert torch.allclose(after[name].double(), expected[name], rtol=1e-4, atol=1e-5)
                assert not torch.equal(after[name], value)
            elif "num_batches" not in name:
                assert torch.equal(after[name], value), "the training itself does not change"
