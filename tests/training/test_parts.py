"""A step in parts is the step as a whole, where its losses are means over samples."""

import pytest
import torch

from raykd.config.scale import Scale
from raykd.core.errors import ConfigError
from raykd.data.loading.sampler import steps
from raykd.methods.crd import CRD
from raykd.methods.fitnet import FitNet
from raykd.methods.sakd import SAKD
from raykd.methods.stkd import STKD
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json
from raykd.tracking.jsonl import read_metrics
from raykd.training.runs import local_host, train
from tests.each import each
from tests.process_group import run_group
from tests.small import prepare, student_run, trained
from tests.tiers import slow_but
from tests.training.scale_work import plainly_alone, plainly_together

pytestmark = pytest.mark.filterwarnings("ignore:.*resource_tracker.*")
# Sums of float32 in another order, over some updates.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
GENTLE = Optim(epochs=2, batch=32, lr=0.01)
ADAM = Optim(name="adamw", epochs=3, batch=32, lr=1e-3, ema=0.9, clip=1.0)
MEANS = ["kd", "dkd", "skd", "ctkd", FitNet(weight=1.0), "jacobian"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def close(found, expected):
    """True where losses and weights are equal but for rounding."""
    for one, other in zip(found[0], expected[0], strict=True):
        losses = {key for key in one if key.startswith("loss")}
        assert losses == {key for key in other if key.startswith("loss")}
        assert all(one[key] == pytest.approx(other[key], rel=1e-3) for key in losses)
        assert one["lr"] == other["lr"]
    assert found[1].keys() == expected[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(value, expected[1][name], **CLOSE, msg=name)


@each("name", slow_but(MEANS, ["kd"]), ids=str)
def test_a_step_in_parts_moves_the_weights_as_the_whole_step_does(store, tmp_path, name):
    run = student_run(store, name, optim=GENTLE)
    prepare(store, run)
    whole, parts = (
        plainly_alone(store, run, tmp_path / str(n), Scale(accumulate=n)) for n in (1, 4)
    )
    close(parts, whole)


@pytest.mark.slow
def test_gradients_are_clipped_and_weights_averaged_once_a_step(store, tmp_path):
    run = student_run(store, optim=ADAM)
    prepare(store, run)
    whole, parts = (
        plainly_alone(store, run, tmp_path / str(n), Scale(accumulate=n)) for n in (1, 4)
    )
    close(parts, whole)


@pytest.mark.slow
def test_workers_that_take_their_shares_in_parts_equal_one_that_does_not(store, tmp_path):
    runs = [student_run(store, name, optim=GENTLE) for name in ("kd", FitNet(weight=1.0))]
    prepare(store, *runs)
    work = [(Scale(accumulate=4), run) for run in runs]
    run_group(2, tmp_path, plainly_together, str(store.root), str(tmp_path), work)
    for number, run in enumerate(runs):
        found = torch.load(tmp_path / str(number) / "found.pt", weights_only=True)
        close(found, plainly_alone(store, run, tmp_path / run.method.name, Scale()))


@pytest.mark.slow
def test_workers_with_uneven_shares_equal_one(store, tmp_path):
    run = student_run(store, "kd", optim=GENTLE)
    prepare(store, run)
    work = [(Scale(workers=(1, 3)), run)]
    run_group(3, tmp_path, plainly_together, str(store.root), str(tmp_path), work)
    found = torch.load(tmp_path / "0" / "found.pt", weights_only=True)
    close(found, plainly_alone(store, run, tmp_path / "alone", Scale()))


REMEMBERING = [
    SAKD(base=CRD(negatives=64), homogeneous=False),
    SAKD(mode="both", homogeneous=False),
    STKD(mix="mixup", incorrect_only=0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", slow_but(REMEMBERING, REMEMBERING[:1]), ids=lambda method: method.label
)
def test_what_helpers_remember_and_count_covers_every_part(store, method):
    run = student_run(store, method)
    prepare(store, run)
    train(store, run, local_host(store, run, Scale(accumulate=2, checkpoint_seconds=0)))
    history = read_metrics(store.path(run))
    assert len(history) == 3
    assert read_json(store.path(run) / "result.json")["accumulate"] == 2
    for line in history:
        if "selected_by_class" in line:  # a share of the samples of every class, so all were seen
            assert all(None not in shares for shares in line["selected_by_class"].values())
    store.discard(run)


def test_a_step_in_one_part_has_the_bits_that_it_always_had(store):
    run = student_run(store, seed=3)
    prepare(store, run)
    expected = trained(store, run)
    store.discard(run)
    train(store, run, local_host(store, run, Scale(accumulate=1)))
    assert trained(store, run) == expected


def test_the_parts_of_a_step_are_a_worker_s_share_of_it_in_order():
    order = torch.arange(100)
    for rank in range(2):
        whole, parts = (steps(order, 24, rank, 2, n) for n in (1, 3))
        assert parts.shape == (12, 4)
        assert torch.equal(parts.view(4, 12), whole)


def test_a_share_that_does_not_divide_into_parts_is_refused():
    with pytest.raises(ConfigError) as error:
        steps(torch.arange(100), 24, 0, 2, 5)
    assert str(error.value) == (
        "a worker's 12 samples of each batch do not divide into 5 parts; "
        "choose optim.batch or scale.accumulate so that they do"
    )
