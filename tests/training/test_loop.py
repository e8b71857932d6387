"""Laws of the training loop: exact resume, one cache for live and cached, what is released."""

import pytest
import safetensors.torch
import torch

from raykd.core.errors import WorkFailed
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.methods.stkd import STKD
from raykd.methods.vid import VID
from raykd.models import build
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json
from raykd.teachers.anchor_route import Route
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.initial_state import learner as prepare_learner
from raykd.training.inputs import views as prepare_views
from raykd.training.optim import build_optimiser
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import CPU, digits, prepare, student_run, teacher_run, trained
from tests.tiers import slow_but

SGD = Optim(epochs=3, batch=32)
ADAMW = Optim(name="adamw", epochs=3, batch=32, lr=1e-3, schedule="cosine", ema=0.9, clip=1.0)

ADAPTIVE = [
    SAKD(base=CRD(negatives=64), homogeneous=False),
    SAKD(base=VID(), mode="reverse", homogeneous=False),
    SAKD(base=FitNet(weight=1.0), mode="random"),
    SAKD(mode="both", homogeneous=False),
]
FROM_A_CACHE = ["kd", "skd", "mlkd", "relational_kd", "crd", ADAPTIVE[0]]
MIXED = [
    STKD(mix=mix, teacher=teacher, alpha=0.5, incorrect_only=0.5, clean_kd=0.5)
    for mix in ("mixup", "cutmix")
    for teacher in ("mixed_input", "mixed_output")
]


def called(method):
    """Name of a test for a method, or for the optimiser of a run."""
    if isinstance(method, str | Optim):
        return getattr(method, "name", method)
    return getattr(method, "mix", method.label)


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    """A store with a teacher, and the caches of the small students."""
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store))
    return store


@pytest.fixture(scope="module")
def student_store(teacher_store, tmp_path_factory):
    """A store in which the students stay that tests have in common."""
    return twin(teacher_store, tmp_path_factory.mktemp("students"))


def twin(store, path):
    """Another store with the same images, teachers, caches and preludes, and no student."""
    for kind in ("images", "teachers", "caches", "preludes"):
        (path / kind).parent.mkdir(parents=True, exist_ok=True)
        (path / kind).symlink_to(store.root / kind)
    return Store(path)


class Stop(Exception):
    """The host that trains this run has gone away."""


class StoppingHost(LocalHost):
    """This process, which dies after some epochs, once their checkpoint is written."""

    def __init__(self, checkpoints, epochs):
        super().__init__(checkpoints, CPU)
        self.left = epochs

    def report(self, metrics, state, *, last):
        super().report(metrics, state, last=last)
        self.left -= 1
        if self.left == 0:
            raise Stop


# Every method is stopped within epochs, in test_mid_epoch.
@each(
    ("name", "optim"),
    slow_but(
        [
            ("kd", SGD),
            ("ft", SGD),
            ("crd", ADAMW),
            ("ctkd", ADAMW),
            ("simkd", ADAMW),
            *((method, ADAMW) for method in ADAPTIVE),
        ],
        [("ft", SGD)],
    ),
    ids=called,
)
def test_a_run_that_stops_after_an_epoch_and_goes_on_ends_with_equal_weights(
    teacher_store, tmp_path, name, optim
):
    run = student_run(teacher_store, name, optim=optim)
    prepare(teacher_store, run)
    expected = trained(twin(teacher_store, tmp_path / "whole"), run)
    store = twin(teacher_store, tmp_path / "cut")
    for epochs in (1, 1):
        with pytest.raises(Stop):
            train(store, run, StoppingHost(Checkpoints(store.path(run)), epochs))
    assert not store.has(run)
    assert trained(store, run) == expected
    assert [line["epoch"] for line in read_metrics(store.path(run))] == [0, 1, 2]
    assert not (store.path(run) / "checkpoint.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", SAKD(base=KD(), homogeneous=False), "at"], ids=called)
def test_a_student_with_dropout_goes_on_to_equal_weights(tmp_path, method):
    teacher_store = Store(tmp_path / "ready")
    optim, data = Optim(epochs=2, batch=16), digits(teacher_store, limit=32, resize=32)
    network = teacher_run(teacher_store, model="torchvision/resnet18", data=data, optim=optim)
    run = student_run(
        teacher_store,
        method,
        model="torchvision/mobilenet_v3_small",
        teacher=network,
        data=data,
        optim=optim,
    )
    prepare(teacher_store, run)
    expected = trained(twin(teacher_store, tmp_path / "whole"), run)
    store = twin(teacher_store, tmp_path / "cut")
    with pytest.raises(Stop):
        train(store, run, StoppingHost(Checkpoints(store.path(run)), 1))
    assert trained(store, run) == expected


@pytest.mark.slow
def test_epochs_after_the_last_checkpoint_are_trained_again_to_the_same_weights(
    teacher_store, student_store, tmp_path
):
    run = student_run(teacher_store)
    expected = trained(student_store, run)
    store = twin(teacher_store, tmp_path / "cut")
    with pytest.raises(Stop):
        train(store, run, StoppingHost(Checkpoints(store.path(run), seconds=0), 1))
    with pytest.raises(Stop):  # one more epoch, but no more checkpoint
        train(store, run, StoppingHost(Checkpoints(store.path(run), seconds=1000), 1))
    assert len(read_metrics(store.path(run))) == 2
    assert trained(store, run) == expected


@pytest.mark.slow
def test_a_teacher_stops_and_goes_on_to_the_same_route(teacher_store, tmp_path):
    data, optim = digits(teacher_store, limit=96), Optim(epochs=4, batch=32)
    run = teacher_run(teacher_store, data=data, optim=optim, save_every=2)
    reference, resumed = (Store(tmp_path / name) for name in ("whole", "cut"))
    for store in (reference, resumed):
        digits(store, limit=96)
    train(reference, run, local_host(reference, run))
    with pytest.raises(Stop):
        train(resumed, run, StoppingHost(Checkpoints(resumed.path(run)), 3))
    train(resumed, run, local_host(resumed, run))
    assert run.anchors() == (2, 4)
    for anchor in run.anchors():
        name = f"weights-{anchor:04d}.safetensors"
        assert (resumed.path(run) / name).read_bytes() == (reference.path(run) / name).read_bytes()


@each("name", slow_but([*FROM_A_CACHE, *MIXED], ["kd", MIXED[0]]), ids=called)
def test_a_cached_student_has_the_losses_of_a_live_one(teacher_store, tmp_path, name):
    histories = []
    for source in ("cache", "live"):
        run = student_run(teacher_store, name, source=source, optim=Optim(epochs=2, batch=32))
        prepare(teacher_store, run)
        store = twin(teacher_store, tmp_path / source)
        trained(store, run)
        histories.append(read_metrics(store.path(run)))
    # Outputs are float16; training moves the two students apart, the further the longer.
    for cached, live, apart in zip(*histories, (2e-3, 1e-2), strict=True):
        assert cached["loss"] == pytest.approx(live["loss"], rel=apart)
        assert cached["loss_label"] == pytest.approx(live["loss_label"], rel=apart)


@pytest.mark.slow
def test_logits_are_the_same_beside_embeddings(teacher_store, tmp_path):
    alone, beside = Store(tmp_path / "alone"), Store(tmp_path / "beside")
    for store in (alone, beside):
        for kind in ("images", "teachers"):
            (store.path(student_run(teacher_store)).parents[1] / kind).parent.mkdir(exist_ok=True)
            (store.root / kind).symlink_to(teacher_store.root / kind)
    kd = student_run(teacher_store, "kd")
    prepare(alone, kd)
    prepare(beside, kd, student_run(teacher_store, "pkt"))
    caches = [[*store.finished("caches")] for store in (alone, beside)]
    assert [len(found) for found in caches] == [2, 2]  # of the training and of the test images
    assert trained(alone, kd) == trained(beside, kd)


@pytest.mark.slow
def test_the_epochs_say_where_samples_were_taught(teacher_store, tmp_path):
    run = student_run(teacher_store, ADAPTIVE[1], optim=Optim(epochs=2, batch=32))
    prepare(teacher_store, run)
    store = twin(teacher_store, tmp_path)
    trained(store, run)
    for line in read_metrics(store.path(run)):
        spots = ["stage1", "stage2", "stage3", "logits"]
        assert [key for key in line if key.startswith("selected_")] == [
            *(f"selected_{spot}" for spot in spots),
            "selected_by_class",
        ]
        assert all(0 <= line[f"selected_{spot}"] <= 100 for spot in spots)
        assert {len(shares) for shares in line["selected_by_class"].values()} == {10}
        assert line["loss"] == pytest.approx(
            sum(value for key, value in line.items() if key.startswith("loss_"))
        )


def test_the_policy_has_a_rate_and_a_weight_decay_of_its_own(teacher_store):
    run = student_run(teacher_store, ADAPTIVE[1])
    host = LocalHost(Checkpoints(teacher_store.path(run)), CPU)
    train, _ = prepare_views(teacher_store, run, host)
    learner = prepare_learner(teacher_store, run, host, train.images.targets)
    student, routing = build_optimiser(run.optim, learner).param_groups
    router = learner.helpers["routing"]
    assert {*routing["params"]} == {*router.parameters()}
    assert {*student["params"]} | {*routing["params"]} == {*learner.parameters()}
    assert (routing["rate"], routing["weight_decay"]) == (0.5, 1e-3)
    assert "rate" not in student


@pytest.mark.slow
def test_a_student_taught_everywhere_equals_one_of_the_sum_of_both_methods(student_store):
    methods = SAKD(base=VID(), mode="always"), Combine(combine=(VID(), KD(weight=1.0)))
    optim = Optim(epochs=2, batch=32)
    runs = [student_run(student_store, method, optim=optim) for method in methods]
    prepare(student_store, *runs)
    always, both = (trained(student_store, run) for run in runs)
    assert always == both


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["resnet18", "regnet_y_400mf"])
def test_networks_of_torchvision_teach_each_other_where_they_choose(tmp_path, teacher):
    store = Store(tmp_path)
    optim = Optim(epochs=1, batch=16)
    data = digits(store, limit=32, resize=32)
    from_library = teacher_run(store, model=f"torchvision/{teacher}", data=data, optim=optim)
    run = student_run(
        store,
        SAKD(homogeneous=False),
        model="torchvision/mobilenet_v3_small",
        data=data,
        teacher=from_library,
        optim=optim,
        precision="bfloat16",
    )
    prepare(store, run)
    trained(store, run)
    assert "selected_stage1" in read_metrics(store.path(run))[0]


def test_epochs_without_an_evaluation_train_the_same_student(
    teacher_store, student_store, tmp_path
):
    store = twin(teacher_store, tmp_path)
    run = student_run(store, optim=Optim(epochs=3, batch=32, evaluate_every=2))
    assert trained(store, run) == trained(student_store, student_run(student_store))
    history = read_metrics(store.path(run))
    assert ["top1" in metrics for metrics in history] == [False, True, True]
    best = read_json(store.path(run) / "result.json")["best"]
    assert best["top1"] == max(metrics["top1"] for metrics in history[1:])


def test_equal_seeds_give_equal_students_and_others_do_not(teacher_store, student_store, tmp_path):
    run, other = (student_run(teacher_store, seed=seed) for seed in (0, 1))
    first = trained(student_store, run)
    assert trained(twin(teacher_store, tmp_path), run) == first
    assert trained(student_store, other) != first


def test_the_result_holds_last_and_best_epoch_and_what_it_was_measured_on(student_store):
    store = student_store
    run = student_run(store)
    state = safetensors.torch.load(trained(store, run))
    assert set(state) == set(build("resnet8", 10).network.state_dict())
    result, history = read_json(store.path(run) / "result.json"), read_metrics(store.path(run))
    assert result["last"] == history[-1]
    assert result["best"]["top1"] == max(line["top1"] for line in history)
    assert result["parameters"] == 78042
    assert result["workers"] == 1
    assert result["hardware"]
    for key in ("loss", "loss_label", "loss_logits", "lr", "images_per_second", "test_loss"):
        assert key in history[0]
    assert 0 <= history[-1]["agreement"] <= 100
    assert history[-1]["kl"] >= 0


def test_a_route_changes_the_teacher_at_its_epochs(teacher_store):
    run = student_run(teacher_store, route=Route(anchors=(1, 2), starts=(0, 2)))
    one = student_run(teacher_store, route=Route(anchors=(2,)))
    plain = student_run(teacher_store)
    assert one.outputs_at(0) == plain.outputs_at(0)
    assert run.outputs_at(1) != plain.outputs_at(1)
    assert run.outputs_at(2) == plain.outputs_at(2)


def test_averaged_weights_are_what_is_released(student_store):
    optim = Optim(epochs=3, batch=32, ema=0.5)
    averaged = trained(student_store, student_run(student_store, optim=optim))
    assert averaged != trained(student_store, student_run(student_store))
    state = safetensors.torch.load(averaged)
    build("resnet8", 10).network.load_state_dict(state)


def test_bfloat16_trains_close_to_float32(student_store):
    losses = []
    for precision in ("float32", "bfloat16"):
        run = student_run(student_store, precision=precision)
        trained(student_store, run)
        losses.append(read_metrics(student_store.path(run))[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # 8 bits of mantissa
    assert losses[1] != losses[0]


def test_students_share_a_cache_whatever_their_seed_but_not_where_the_data_s_differs(teacher_store):
    caches = {student_run(teacher_store, seed=seed).outputs_at(0) for seed in range(3)}
    assert len(caches) == 1
    other = student_run(teacher_store, data=digits(teacher_store, limit=96, seed=5))
    assert other.outputs_at(0) not in caches


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(teacher_store, tmp_path):
    run = student_run(teacher_store, optim=Optim(epochs=3, batch=32, lr=1e30))
    with pytest.raises(WorkFailed, match=r"epoch .* not finite.*run\.optim\.lr"):
        trained(twin(teacher_store, tmp_path), run)


def test_torch_is_left_with_one_thread():
    assert torch.get_num_threads() == 1
