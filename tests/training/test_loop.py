"""Laws of the training loop: exact resume, one cache for live and cached, what is released."""

import pytest
import safetensors.torch
import torch

from raykd.data.transforms.augment import Augment
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
from raykd.teachers.route import Route
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import Journal
from raykd.training.hosts.base import LocalHost
from raykd.training.initial_state import learner as prepare_learner
from raykd.training.inputs import views as prepare_views
from raykd.training.optim import build_optimiser
from raykd.training.runs import local_host, train_student, train_teacher
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
    methods = ["kd", "skd", *FROM_A_CACHE, *MIXED, *ADAPTIVE]
    prepare(store, *(student_run(store, method) for method in methods))
    return store


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

    def __init__(self, journal, epochs):
        super().__init__(journal, CPU)
        self.left = epochs

    def report(self, metrics, state, *, last):
        super().report(metrics, state, last=last)
        self.left -= 1
        if self.left == 0:
            raise Stop


# Every method is stopped within epochs, in test_mid_epoch.
@pytest.mark.parametrize(
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
        [("kd", SGD), ("ft", SGD), ("crd", ADAMW), (ADAPTIVE[0], ADAMW)],
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
            train_student(store, run, StoppingHost(Journal(store.path(run)), epochs))
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
        train_student(store, run, StoppingHost(Journal(store.path(run)), 1))
    assert trained(store, run) == expected


def test_epochs_after_the_last_checkpoint_are_trained_again_to_the_same_weights(
    teacher_store, tmp_path
):
    run = student_run(teacher_store, "skd", views=3, optim=Optim(epochs=4, batch=32))
    expected = trained(twin(teacher_store, tmp_path / "whole"), run)
    store = twin(teacher_store, tmp_path / "cut")
    with pytest.raises(Stop):
        train_student(store, run, StoppingHost(Journal(store.path(run), seconds=0), 1))
    with pytest.raises(Stop):  # two more epochs, but no more checkpoint
        train_student(store, run, StoppingHost(Journal(store.path(run), seconds=1000), 2))
    assert len(read_metrics(store.path(run))) == 3
    assert trained(store, run) == expected


def test_a_teacher_stops_and_goes_on_to_the_same_route(teacher_store, tmp_path):
    run = teacher_run(teacher_store, optim=Optim(epochs=4, batch=32), save_every=2)
    reference, resumed = (Store(tmp_path / name) for name in ("whole", "cut"))
    for store in (reference, resumed):
        digits(store, limit=320)
    train_teacher(reference, run, local_host(reference, run))
    with pytest.raises(Stop):
        train_teacher(resumed, run, StoppingHost(Journal(resumed.path(run)), 3))
    train_teacher(resumed, run, local_host(resumed, run))
    assert run.anchors() == (2, 4)
    for anchor in run.anchors():
        name = f"weights-{anchor:04d}.safetensors"
        assert (resumed.path(run) / name).read_bytes() == (reference.path(run) / name).read_bytes()


@pytest.mark.parametrize("name", [*FROM_A_CACHE, *MIXED], ids=called)
def test_a_cached_student_has_the_losses_of_a_live_one(teacher_store, tmp_path, name):
    histories = []
    for source in ("cache", "live"):
        run = student_run(teacher_store, name, source=source, optim=Optim(epochs=2, batch=32))
        store = twin(teacher_store, tmp_path / source)
        trained(store, run)
        histories.append(read_metrics(store.path(run)))
    for cached, live in zip(*histories, strict=True):
        assert cached["loss"] == pytest.approx(live["loss"], rel=2e-3)  # float16 logits
        assert cached["loss_label"] == pytest.approx(live["loss_label"], rel=5e-3)


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


def test_the_epochs_say_where_samples_were_taught(teacher_store, tmp_path):
    run = student_run(teacher_store, ADAPTIVE[1])
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
    host = LocalHost(Journal(teacher_store.path(run)), CPU)
    train, _ = prepare_views(teacher_store, run, host)
    learner = prepare_learner(teacher_store, run, host, train.images.targets)
    student, routing = build_optimiser(run.optim, learner).param_groups
    router = learner.helpers["routing"]
    assert {*routing["params"]} == {*router.parameters()}
    assert {*student["params"]} | {*routing["params"]} == {*learner.parameters()}
    assert (routing["rate"], routing["weight_decay"]) == (0.5, 1e-3)
    assert "rate" not in student


def test_a_student_taught_everywhere_equals_one_of_the_sum_of_both_methods(teacher_store, tmp_path):
    both = Combine(combine=(VID(), KD(weight=1.0)))
    always = student_run(teacher_store, SAKD(base=VID(), mode="always"))
    weights = [trained(twin(teacher_store, tmp_path / "a"), always)]
    assert (
        trained(twin(teacher_store, tmp_path / "b"), student_run(teacher_store, both)) == weights[0]
    )


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


def test_equal_seeds_give_equal_students_and_others_do_not(teacher_store, tmp_path):
    first = trained(twin(teacher_store, tmp_path / "a"), student_run(teacher_store, seed=1))
    assert trained(twin(teacher_store, tmp_path / "b"), student_run(teacher_store, seed=1)) == first
    assert trained(twin(teacher_store, tmp_path / "c"), student_run(teacher_store, seed=2)) != first


def test_released_weights_load_into_the_plain_network(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    run = student_run(teacher_store)
    trained(store, run)
    state = safetensors.torch.load_file(store.path(run) / "weights.safetensors")
    build("resnet8", 10).network.load_state_dict(state)
    assert set(state) == set(build("resnet8", 10).network.state_dict())


def test_the_result_holds_last_and_best_epoch_and_what_it_was_measured_on(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    run = student_run(teacher_store)
    trained(store, run)
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


def test_a_route_changes_the_teacher_at_its_epochs(teacher_store, tmp_path):
    run = student_run(teacher_store, route=Route(anchors=(1, 2), starts=(0, 2)))
    store = twin(teacher_store, tmp_path)
    (tmp_path / "caches").unlink()
    prepare(store, run)
    trained(store, run)
    one = student_run(teacher_store, route=Route(anchors=(2,)))
    plain = student_run(teacher_store)
    assert one.logits_at(0) == plain.logits_at(0)
    assert run.logits_at(1) != plain.logits_at(1)
    assert run.logits_at(2) == plain.logits_at(2)


def test_one_anchor_is_plain_distillation_bit_for_bit(teacher_store, tmp_path):
    plain = trained(twin(teacher_store, tmp_path / "a"), student_run(teacher_store))
    one = student_run(teacher_store, route=Route(anchors=(2,)))
    assert trained(twin(teacher_store, tmp_path / "b"), one) == plain


def test_averaged_weights_are_what_is_released(teacher_store, tmp_path):
    optim = Optim(epochs=3, batch=32, ema=0.5)
    averaged = trained(twin(teacher_store, tmp_path / "a"), student_run(teacher_store, optim=optim))
    without = student_run(teacher_store, optim=optim.model_copy(update={"ema": None}))
    assert averaged != trained(twin(teacher_store, tmp_path / "b"), without)
    state = safetensors.torch.load(averaged)
    build("resnet8", 10).network.load_state_dict(state)


def test_bfloat16_trains_close_to_float32(teacher_store, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        store = twin(teacher_store, tmp_path / precision)
        run = student_run(teacher_store, precision=precision)
        trained(store, run)
        losses.append(read_metrics(store.path(run))[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # 8 bits of mantissa
    assert losses[1] != losses[0]


def test_students_of_three_seeds_share_one_cache(teacher_store):
    runs = [student_run(teacher_store, seed=seed) for seed in range(3)]
    assert len({run.logits_at(0) for run in runs}) == 1


def test_the_order_follows_the_runs_seed_and_the_pixels_the_datas(teacher_store):
    other = student_run(teacher_store, data=digits(teacher_store, limit=96, seed=5))
    assert other.logits_at(0) != student_run(teacher_store).logits_at(0)


def test_a_finite_augmentation_has_no_more_views_than_there_are():
    run_views = Augment(pad=1).views()
    assert run_views == 9


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(teacher_store, tmp_path):
    from raykd.core.errors import WorkFailed

    run = student_run(teacher_store, optim=Optim(epochs=3, batch=32, lr=1e30))
    with pytest.raises(WorkFailed, match=r"epoch .* not finite.*run\.optim\.lr"):
        trained(twin(teacher_store, tmp_path), run)


def test_torch_is_left_with_one_thread():
    assert torch.get_num_threads() == 1
