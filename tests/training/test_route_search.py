"""The greedy search for a route: what it measures, where it goes, and how it goes on."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import CacheCorrupt, WorkFailed
from raykd.core.record import fingerprint
from raykd.core.types import Signal
from raykd.data.dataset import Images, open_split
from raykd.launch import units
from raykd.launch.executor import execute
from raykd.methods import METHODS, Method
from raykd.methods.fitnet import FitNet
from raykd.methods.kd import KD
from raykd.methods.mimic import MimicEmbedding
from raykd.methods.simkd import SimKD
from raykd.methods.skd import SKD
from raykd.models import build
from raykd.models.staged import measure
from raykd.recipes import RCO, Optim, OutputsRun, Search, SearchedStudent, StudentRun
from raykd.storage.store import Store, read_json
from raykd.training import route_search as searching
from raykd.training.checkpointing import Checkpoints
from raykd.training.route_results import (
    DECISIONS,
    anchors_of,
    measures,
    next_stage,
    read_decisions,
    route_found,
    write_decisions,
)
from tests.each import each
from tests.small import CPU
from tests.tiers import slow_but
from tests.training.route_runs import (
    QUIET,
    carried,
    released,
    state,
    store_with_teacher,
    student_below,
    twin,
)

FORMS = [(KD(), "kl"), (FitNet(), "loss"), (MimicEmbedding(), "loss")]


def forms(*quick: int) -> pytest.MarkDecorator:
    """Parameters of a test: all forms, of which some run by default."""
    cases = [
        pytest.param(form, marks=() if number in quick else pytest.mark.slow, id=form[0].name)
        for number, form in enumerate(FORMS)
    ]
    return pytest.mark.parametrize("form", cases)


def basis(store: Store, method: Method | None = None, **changes) -> StudentRun:
    """A student below a teacher of three epochs."""
    return student_below(store, 3, **({"method": method or KD()} | changes))


def sought(run: StudentRun, **choice) -> SearchedStudent:
    """The student whose route is to be found."""
    found = RCO(select="greedy", **choice).students(run)
    assert isinstance(found, SearchedStudent)
    return found


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    """A store with the teacher."""
    return store_with_teacher(tmp_path_factory.mktemp("store"), 3)


def decided(store: Store, search: Search) -> bytes:
    return (store.path(search) / DECISIONS).read_bytes()


WALK = {"threshold": 1e-9}  # through all three checkpoints


@pytest.fixture(scope="module")
def reference(teacher_store, tmp_path_factory):
    """A store in which nothing came between."""
    store = twin(teacher_store, tmp_path_factory.mktemp("uninterrupted") / "store")
    carried(store, sought(basis(store), **WALK))
    return store


# Distances


def held_out(store: Store, run: StudentRun) -> tuple[torch.Tensor, Images]:
    """The normalised pixels of the validation images, made by hand, and those."""
    held = open_split(store, run.data, "validation")
    mean, std = torch.tensor([run.data.mean, run.data.std]).double().view(2, 1, 3, 1, 1)
    pixels = held.pixels.permute(0, 3, 1, 2).double() / 255
    return ((pixels - mean) / std).float(), held


def network(model: str, tensors):
    """A network with the weights of a file, in evaluation mode."""
    made = build(model, 10)
    made.network.load_state_dict(tensors)
    return made.eval()


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """The mean over rows of KL(teacher || student), in plain loops."""
    total = 0.0
    for mine, theirs in zip(student / temperature, teacher / temperature, strict=True):
        p, q = np.exp(theirs - theirs.max()), np.exp(mine - mine.max())
        p, q = p / p.sum(), q / q.sum()
        total += sum(float(a) * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))
    return total / len(student)


def by_hand(store: Store, stage: StudentRun, anchor: int, measure: str, temperature=1.0) -> float:
    """The distance of a finished student from a checkpoint of the live teacher."""
    wanted = Signal.FEATURES | Signal.EMBEDDING
    pixels, _ = held_out(store, stage)
    file = store.path(stage.teacher) / f"weights-{anchor:04d}.safetensors"
    with torch.no_grad():
        mine = network(stage.model, state(store, stage)).outputs(pixels, wanted)
        checkpoint = safetensors.torch.load_file(file)
        theirs = network(stage.teacher.model, checkpoint).outputs(pixels, wanted)
    if measure == "kl":
        logits = mine.logits.double().numpy(), theirs.logits.double().numpy()
        return divergence(*logits, temperature)
    helpers = state(store, stage, "weights-stage.safetensors")
    if isinstance(stage.method, MimicEmbedding):
        weight, bias = helpers["projection.weight"].double(), helpers["projection.bias"].double()
        guess = mine.embedding.double() @ weight.T + bias
        return float((guess - theirs.embedding.double()).square().sum(1).mean())
    fit = {name.removeprefix("regressor."): tensor for name, tensor in helpers.items()}
    guess = F.conv2d(mine.features["stage2"], fit["0.weight"], fit["0.bias"])
    norm = fit["1.running_mean"], fit["1.running_var"], fit["1.weight"], fit["1.bias"]
    guess = F.batch_norm(guess, *norm, eps=1e-5).relu()
    return 100 * float((guess - theirs.features["stage2"]).double().square().mean())


def naive_choice(far: dict[int, float], current: int, threshold: float) -> int:
    """max{j > i : r_ij <= threshold}, or else the next one."""
    later = [j for j in sorted(far) if j > current]
    within = [j for j in later if far[j] / far[current] <= threshold]
    return max(within) if within else later[0]


@pytest.mark.slow
@forms(0, 1)
def test_a_search_measures_and_goes_as_a_computation_by_hand_does(reference, monkeypatch, form):
    method, measure = form
    monkeypatch.setattr(searching, "BATCH", 40)  # the last batch is smaller
    store = reference
    wanted = sought(basis(store, method), threshold=1e-8)  # goes through all checkpoints
    assert wanted.search.measure == measure
    carried(store, wanted)
    decisions = read_decisions(store, wanted.search)
    assert [decision.anchor for decision in decisions] == [1, 2]
    assert [decision.next for decision in decisions] == [2, 3]
    middle = []
    for number, decision in enumerate(decisions, start=1):
        stage = wanted.search.stage((1, 2)[:number])
        assert decision.student == fingerprint(stage)
        assert list(decision.distances) == list(range(number, 4))
        for anchor, found in decision.distances.items():
            # Logits and embeddings come from float16; features are those of the network.
            expected = by_hand(store, stage, anchor, measure)
            tolerance = 1e-5 if measure == "loss" and isinstance(method, FitNet) else 2e-3
            assert found == pytest.approx(expected, rel=tolerance)
            ratio = found / decision.distances[number]
            assert decision.ratios[anchor] == pytest.approx(ratio, rel=1e-12)
        assert decision.ratios[number] == 1
        middle += [ratio for anchor, ratio in decision.ratios.items() if anchor > number]
    # The same students are found again under other thresholds, where those go the same way.
    for threshold in (float(np.median(middle)), 1e30):
        other = sought(basis(store, method), threshold=threshold)
        carried(store, other)
        for decision in read_decisions(store, other.search):
            expected = naive_choice(decision.distances, decision.anchor, threshold)
            assert decision.next == expected
            first = decisions[0]
            assert decision.anchor > 1 or decision.distances == first.distances
        route = anchors_of(other.search, read_decisions(store, other.search))
        assert store.has(other.along(route))
        assert threshold < 1e30 or route == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "temperature"),
    slow_but([(FitNet(), 4.0), (MimicEmbedding(), 1.0)], [(FitNet(), 4.0)]),
)
def test_hint_and_mimic_learning_can_be_measured_by_divergence(reference, method, temperature):
    store = reference
    choice = {"threshold": 1e30, "measure": "kl", "temperature": temperature}
    wanted = sought(basis(store, method), **choice)
    carried(store, wanted)
    (decision,) = read_decisions(store, wanted.search)
    for anchor, found in decision.distances.items():
        expected = by_hand(store, wanted.search.stage((1,)), anchor, "kl", temperature)
        assert found == pytest.approx(expected, rel=2e-3)  # float16 logits


@pytest.mark.slow
def test_a_student_of_equal_distributions_is_at_no_distance(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    # The student is a copy of the teacher's first checkpoint.
    wanted = sought(basis(store, model="resnet8x4"), threshold=1e6)
    stage = wanted.search.stage((1,))
    carried(store, stage)
    for anchor in (1, 2):
        file = store.path(stage.teacher) / f"weights-{anchor:04d}.safetensors"
        path = store.path(stage)
        (path / "weights.safetensors").write_bytes(file.read_bytes())
        result = read_json(path / "result.json")
        digests = searching.inputs.weights.checksums(path)
        (path / "result.json").write_text(json.dumps(result | {"weights": digests}))
        carried_caches(store, wanted)
        far = searching.distances(store, wanted.search, (1,), CPU)
        # What is left is the cache's float16: the square of half of its last digit.
        assert far[anchor] < 1e-6
        assert all(far[other] > 1e-4 for other in far if other != anchor)


def carried_caches(store: Store, wanted: SearchedStudent) -> None:
    """Make the caches that a search measures by."""
    experiment = Experiment("small", (wanted,), Scale())
    execute(experiment, store, QUIET, students=False)


@pytest.mark.slow
def test_a_student_that_borrows_a_classifier_is_measured_by_its_answers(reference):
    store = reference
    wanted = sought(basis(store, SimKD()), threshold=1e30)
    carried(store, wanted)
    (decision,) = read_decisions(store, wanted.search)
    stage = wanted.search.stage((1,))
    pixels, _ = held_out(store, stage)
    helpers = stage.method.helpers(
        *(measure(build(model, 10), (8, 8)) for model in ("resnet8", "resnet8x4"))
    )
    helpers.load_state_dict(state(store, stage, "weights-helpers.safetensors"))
    with torch.no_grad():
        mine = network("resnet8", state(store, stage)).outputs(pixels, stage.method.needs())
        mine = stage.method.scores(mine, None, helpers.eval())
        file = store.path(stage.teacher) / "weights-0001.safetensors"
        theirs = network("resnet8x4", safetensors.torch.load_file(file))(pixels)
    expected = divergence(mine.double().numpy(), theirs.double().numpy(), 1.0)
    assert decision.distances[1] == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", slow_but(["layer_norm", "teacher_std"], ["layer_norm"]))
def test_spherical_kd_is_measured_between_the_logits_that_it_compares(reference, variant):
    store = reference
    wanted = sought(basis(store, SKD(variant=variant)), threshold=1e30)
    carried(store, wanted)
    (decision,) = read_decisions(store, wanted.search)
    stage = wanted.search.stage((1,))
    pixels, _ = held_out(store, stage)
    radius = float(state(store, stage, "weights-helpers.safetensors")["radius.value"])
    with torch.no_grad():
        mine = network("resnet8", state(store, stage))(pixels).double()
    for anchor, found in decision.distances.items():
        file = store.path(stage.teacher) / f"weights-{anchor:04d}.safetensors"
        with torch.no_grad():
            theirs = network("resnet8x4", safetensors.torch.load_file(file))(pixels).double()
        if variant == "layer_norm":
            pair = [radius * (z - z.mean(1, True)) / z.std(1, False, True) for z in (mine, theirs)]
        else:
            pair = [mine * theirs.std(1, True, True) / mine.std(1, True, True), theirs]
        expected = divergence(*(z.numpy() for z in pair), 1.0)
        assert found == pytest.approx(expected, rel=2e-3)  # float16 logits


@pytest.mark.slow
def test_a_loss_that_remembers_training_samples_is_no_measure(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    run = basis(store, METHODS["crd"](negatives=64))
    with pytest.raises(ValueError, match=r"'crd' remembers training samples.*rco\.measure: kl"):
        carried(store, sought(run, measure="loss"))


# Where a search goes


def wandered(far: dict[tuple[int, int], float], threshold: float, at_most: int | None):
    """The anchors of the specification's search, of which there are `at_most`."""
    last = max(j for _, j in far)
    anchors = [min(j for _, j in far)]
    while anchors[-1] != last:
        i = anchors[-1]
        left = None if at_most is None else at_most - len(anchors)
        if left is not None and left <= 1:
            anchors.append(last)
        else:
            here = {j: value for (k, j), value in far.items() if k == i}
            anchors.append(naive_choice(here, i, threshold))
    return tuple(anchors)


@each(
    ("at_most", "threshold"),
    [(None, 1.1), (2, 1.1), (4, 0.5)],
)
def test_decisions_follow_one_another_to_the_last_checkpoint(
    teacher_store, tmp_path, monkeypatch, at_most, threshold
):
    store = Store(tmp_path)
    teacher = basis(teacher_store).teacher.model_copy(update={"optim": Optim(epochs=9, batch=32)})
    wanted = sought(basis(teacher_store, teacher=teacher), threshold=threshold, anchors=at_most)
    saved = wanted.search.candidates()
    assert saved == tuple(range(1, 10))
    draws = np.random.default_rng([at_most or 0, round(10 * threshold)])
    far = {(i, j): float(draws.uniform(0.5, 2)) for i in saved for j in saved if j >= i}

    def made_up(store, search, anchors, device):
        return {j: value for (i, j), value in far.items() if i == anchors[-1]}

    monkeypatch.setattr(searching, "distances", made_up)
    walked = []
    while (stage := next_stage(store, wanted.search)) is not None:
        assert route_found(store, wanted) is None
        walked.append(stage.anchor_at(0))
        assert stage == wanted.search.stage(tuple(walked))
        searching.decide(store, wanted.search, CPU)  # the stage is still to be trained
        assert next_stage(store, wanted.search) == stage
        store.finish(stage)
        searching.decide(store, wanted.search, CPU)
    route = anchors_of(wanted.search, read_decisions(store, wanted.search))
    assert route == wandered(far, threshold, at_most)
    assert walked == list(route[:-1])
    assert at_most is None or len(route) <= at_most
    assert route_found(store, wanted) == wanted.along(route)
    assert store.has(wanted.search)
    before = decided(store, wanted.search)
    searching.decide(store, wanted.search, CPU)  # there is nothing left to decide
    assert decided(store, wanted.search) == before


@pytest.mark.slow
def test_a_checkpoint_that_is_reached_leaves_the_others_infinitely_hard(
    teacher_store, tmp_path, monkeypatch
):
    store = Store(tmp_path)
    wanted = sought(basis(teacher_store), threshold=1e30)
    far = {1: 1e-9, 2: 1e-9, 3: 0.5}
    monkeypatch.setattr(searching, "distances", lambda *_: far)
    store.finish(wanted.search.stage((1,)))
    searching.decide(store, wanted.search, CPU)
    (decision,) = read_decisions(store, wanted.search)
    assert decision.ratios == {1: 1, 2: 1, 3: float("inf")}
    assert decision.next == 2
    json.loads(decided(store, wanted.search), parse_constant=pytest.fail)  # plain JSON


def test_a_search_does_not_choose_by_distances_that_are_not_finite(
    teacher_store, tmp_path, monkeypatch
):
    store = Store(tmp_path)
    wanted = sought(basis(teacher_store), threshold=1e30)
    monkeypatch.setattr(searching, "distances", lambda *_: {1: 0.5, 2: float("nan"), 3: 0.5})
    store.finish(wanted.search.stage((1,)))
    with pytest.raises(WorkFailed, match="distance to the teacher's epoch 2 is not finite"):
        searching.decide(store, wanted.search, CPU)
    assert read_decisions(store, wanted.search) == []


# What is made


@pytest.mark.slow
@forms(2)
def test_a_search_makes_exactly_what_it_reads(teacher_store, tmp_path, form):
    method, _ = form
    store = twin(teacher_store, tmp_path / "store", "images", "teachers")
    optim = Optim(epochs=3, batch=32)
    run = basis(store, method, optim=optim, views=2)
    wanted = sought(run, anchors=2, threshold=1e-9)
    outcome = carried(store, wanted)
    assert outcome.made["students"] == 2
    expected = {("test", anchor, 0) for anchor in (1, 3)}
    if method != FitNet():
        expected |= {("train", anchor, view) for anchor in (1, 3) for view in (0, 1)}
        expected |= {("validation", anchor, 0) for anchor in (1, 2, 3)}
    found = set()
    for folder in store.finished("caches"):
        cache = OutputsRun.read(read_json(folder / "recipe.json"))
        assert isinstance(cache, OutputsRun)
        for shard in folder.glob("view-*.arrow"):
            found.add((cache.split, cache.anchor, int(shard.name.split("-")[1])))
    assert found == expected
    route = anchors_of(wanted.search, read_decisions(store, wanted.search))
    assert route == (1, 3)
    final = wanted.along(route)
    assert all(store.has(stage) for stage in final.stages())
    assert set((store.root / "students").iterdir()) == {store.path(s) for s in final.stages()}
    shutil.rmtree(store.root / "caches")  # a search that is over reads none
    again = carried(store, wanted)
    assert again.made == dict.fromkeys(outcome.made, 0)
    assert again.reused["students"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["loss", "kl"])
def test_a_search_with_a_live_teacher_caches_nothing_that_it_does_not_read(
    teacher_store, tmp_path, monkeypatch, measure
):
    store = twin(teacher_store, tmp_path / "store", "images", "teachers")
    wanted = sought(basis(store, source="live"), threshold=1e30, measure=measure)
    opened = []
    open_cache = searching.inputs.open_cache

    def opening(store, logits, views, device):
        opened.append(logits)
        return open_cache(store, logits, views, device)

    monkeypatch.setattr(searching.inputs, "open_cache", opening)
    carried(store, wanted)
    made = {path.name for path in (store.root / "caches").iterdir()}
    assert made == {fingerprint(logits) for logits in opened}


@pytest.mark.slow
def test_a_route_is_walked_in_one_stage_or_many_and_searches_share_stages(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    wanted = sought(basis(store), threshold=1e30, stages="one_stage")
    other = sought(basis(store), threshold=1e-9, anchors=2)
    outcome = carried(store, wanted, other)
    assert outcome.made["students"] == 3, "(1) for both, (1, 3) in one stage and in two"
    final = route_found(store, wanted)
    assert final is not None
    assert (final.route.anchors, final.route.starts) == ((1, 3), (0, 1))
    assert store.has(final)
    assert store.has(other.along((1, 3)))


@pytest.mark.slow
def test_precompute_makes_what_is_measured_by_and_trains_no_student(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store", "images", "teachers")
    wanted = sought(basis(store))
    outcome = execute(Experiment("small", (wanted,), Scale()), store, QUIET, students=False)
    assert outcome.made["caches"] == 5, "two for the first stage, and one for each checkpoint"
    assert all((store.path(cache) / "recipe.json").is_file() for cache in measures(wanted.search))
    assert not (store.root / "students").exists()
    assert not store.path(wanted.search).exists()


@pytest.mark.slow
def test_a_stage_that_fails_ends_its_search_and_no_other(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path / "store")
    bad = sought(basis(store, optim=Optim(epochs=2, batch=32, lr=1e30)), threshold=1e30)
    good = sought(basis(store), threshold=1e30)
    with pytest.raises(WorkFailed, match="not finite"):
        carried(store, bad, good)
    assert route_found(store, bad) is None
    final = route_found(store, good)
    assert final is not None
    assert store.has(final)


# Going on


class Stop(Exception):
    """The process has gone away."""


def before_a_decision(patch) -> None:
    """End between the end of a stage and its decision."""

    def stop(*_):
        raise Stop

    patch.setattr(units, "decide", stop)


def after_a_decision(patch) -> None:
    """End between a decision and the next stage."""
    decide = units.decide

    def deciding(store, search, device):
        decide(store, search, device)
        raise Stop

    patch.setattr(units, "decide", deciding)


def in_a_stage(patch) -> None:
    """End after an epoch of a stage."""
    record = Checkpoints.record

    def recording(self, state, *, last):
        record(self, state, last=last)
        raise Stop

    patch.setattr(Checkpoints, "record", recording)


def before_the_marker(patch) -> None:
    """End between the last decision and the marker of a finished search."""
    finish = Store.finish

    def finishing(self, recipe):
        if isinstance(recipe, Search):
            raise Stop
        finish(self, recipe)

    patch.setattr(Store, "finish", finishing)


@pytest.mark.slow
def test_a_search_that_ends_goes_on_to_equal_decisions_and_weights(
    teacher_store, reference, tmp_path, monkeypatch
):
    store = twin(teacher_store, tmp_path / "store")
    wanted = sought(basis(store), **WALK)
    ends = (before_a_decision, after_a_decision, in_a_stage, before_the_marker)
    for end in ends:
        with monkeypatch.context() as patch:
            end(patch)
            with pytest.raises(Stop):
                carried(store, wanted)
        assert not store.has(wanted.search)
    carried(store, wanted)
    assert decided(store, wanted.search) == decided(reference, wanted.search)
    for stage in wanted.along((1, 2, 3)).stages():
        assert released(store, stage) == released(reference, stage)
    assert store.has(wanted.search)


@pytest.mark.slow
def test_what_was_decided_is_not_measured_again(reference, tmp_path, monkeypatch):
    wanted = sought(basis(reference), **WALK)
    monkeypatch.setattr(searching, "distances", pytest.fail)
    assert carried(reference, wanted).made["students"] == 0


# What is written down


@pytest.mark.slow
def test_decisions_are_read_back_as_they_were_written(reference, tmp_path):
    wanted = sought(basis(reference), **WALK)
    decisions = read_decisions(reference, wanted.search)
    other = Store(tmp_path)
    write_decisions(other, wanted.search, decisions)
    assert read_decisions(other, wanted.search) == decisions
    assert decided(other, wanted.search) == decided(reference, wanted.search)
    value = json.loads(decided(other, wanted.search))
    assert (value["anchors"], value["candidates"]) == ([1, 2, 3], [1, 2, 3])


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def changed(key: str, value: object):
    def of(text: str) -> str:
        read = json.loads(text)
        read["decisions"][0][key] = value
        return json.dumps(read)

    return of


def without(key: str):
    def of(text: str) -> str:
        read = json.loads(text)
        del read["decisions"][0][key]
        return json.dumps(read)

    return of


DAMAGE = {
    "truncated": truncated,
    "empty": lambda text: "",
    "not a mapping": lambda text: "[]",
    "without decisions": lambda text: "{}",
    "without a student": without("student"),
    "without what comes next": without("next"),
    "distances of words": changed("distances", {"one": 1.0}),
    "no decisions at all": lambda text: '{"decisions": null}',
    "distances in a list": changed("distances", [1.0]),
    "a next epoch that was not saved": changed("next", 7),
    "a next epoch that lies behind": changed("next", 1),
    "a next epoch in words": changed("next", "two"),
}


def test_damaged_decisions_are_named(reference, tmp_path):
    wanted, store = sought(basis(reference), **WALK), Store(tmp_path)
    path = store.path(wanted.search) / DECISIONS
    path.parent.mkdir(parents=True)
    for what, damage in DAMAGE.items():
        path.write_text(damage(decided(reference, wanted.search).decode()))
        with pytest.raises(CacheCorrupt, match=rf"{path}: .*remove the folder to measure again"):
            pytest.fail(f"{what}: {read_decisions(store, wanted.search)}")


@pytest.mark.slow
def test_damaged_decisions_do_not_stop_what_can_do_without_them(teacher_store, tmp_path):
    wanted = sought(basis(teacher_store), **WALK)
    store = twin(teacher_store, tmp_path / "store")
    path = store.path(wanted.search) / DECISIONS
    path.parent.mkdir(parents=True)
    path.write_text("")
    other = basis(store, seed=1)
    with pytest.raises(CacheCorrupt):
        carried(store, wanted, other)
    assert store.has(other)
