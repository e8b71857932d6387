"""Several workers make one student: the same samples, the same weights, every image once."""

import json
import math

import pytest
import safetensors.torch
import torch

from raykd.methods.crd import CRD
from raykd.methods.sakd import SAKD
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json
from raykd.tracking.jsonl import read_metrics
from tests.process_group import run_group
from tests.small import prepare, student_run, trained
from tests.training.group_work import (
    compare,
    contrast,
    gather,
    route,
    train,
    train_each,
    train_told,
    train_within,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*resource_tracker.*")]


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store))
    return store


def test_workers_agree_on_sums_and_buffers_and_one_writes_metrics(tmp_path):
    run_group(2, tmp_path, gather, str(tmp_path))
    for rank in range(2):
        seen = read_json(tmp_path / f"rank-{rank}.json")
        assert seen == {"mean": [0.5, 0.5], "total": [2.0, 1.0]}
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [0, 1, 2]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Records of two workers."""
    folder = tmp_path_factory.mktemp("compared")
    run_group(2, folder, compare, str(folder))
    return folder


def test_rows_are_gathered_in_the_order_of_the_workers(compared):
    for rank in range(2):
        assert json.loads((compared / "rows" / f"rows-{rank}.json").read_text()) == [
            [0, 1],
            [10, 11],
            [12, 13],
        ]


def test_a_memory_does_not_depend_on_the_number_of_workers(compared):
    expected, _, helpers = contrast(lambda rows: rows, lambda rows: rows)
    for rank in range(2):
        path = compared / "together" / f"memory-{rank}.pt"
        losses, state = torch.load(path, weights_only=True)
        assert losses == pytest.approx(expected, rel=1e-5)
        for name, value in helpers.state_dict().items():
            # Vectors of length 1, and Z: sums in another order, in float32.
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def test_a_worker_without_a_row_updates_the_memory_with_the_others(compared):
    _, _, helpers = contrast(lambda rows: rows, lambda rows: rows)
    for rank in range(2):
        losses, state = torch.load(compared / "alone" / f"memory-{rank}.pt", weights_only=True)
        assert all(math.isfinite(loss) for loss in losses)
        for name, value in helpers.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def test_the_routing_loss_does_not_depend_on_the_number_of_workers(compared):
    expected, gradients, counts = route(lambda rows: rows, lambda rows: rows)
    for rank in range(2):
        path = compared / "route" / f"route-{rank}.pt"
        loss, found, counted = torch.load(path, weights_only=True)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert torch.equal(counted, counts)
        for one, other in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # float32 sums


def test_two_workers_train_helpers_preludes_and_mixed_samples(teacher_store, tmp_path):
    students = [student_run(teacher_store, name) for name in ("crd", "ft", "simkd", "stkd")]
    students += [
        student_run(teacher_store, SAKD(base=CRD(negatives=64), homogeneous=False)),
        student_run(teacher_store, SAKD(mode="both", homogeneous=False)),
    ]
    first = student_run(teacher_store, "ab")
    prepare(teacher_store, *students)
    run_group(2, tmp_path, train_each, str(teacher_store.root), [*students, first.prelude(), first])
    for run in (*students, first):
        assert len(read_metrics(teacher_store.path(run))) == 3
        assert read_json(teacher_store.path(run) / "result.json")["workers"] == 2


def test_two_workers_train_one_student_and_count_each_test_image_once(teacher_store, tmp_path):
    # One epoch from the same weights: the workers differ by their batch norms' batches alone.
    run = student_run(teacher_store, optim=Optim(epochs=1, batch=32, lr=1e-6))
    run_group(2, tmp_path, train, str(teacher_store.root), run, 0)
    [two] = read_metrics(teacher_store.path(run))
    result = read_json(teacher_store.path(run) / "result.json")
    assert result["workers"] == 2
    teacher_store.discard(run)
    trained(teacher_store, run)
    [one] = read_metrics(teacher_store.path(run))
    images = 180
    for metric in ("top1", "agreement"):
        count = two[metric] / 100 * images
        assert count == pytest.approx(round(count), abs=1e-6)  # whole images, of all of them
    assert two["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=0.1)


def test_two_workers_that_stop_and_go_on_end_with_equal_weights(teacher_store, tmp_path):
    run = student_run(teacher_store, "skd")
    run_group(2, tmp_path, train, str(teacher_store.root), run, 0)
    reference = (teacher_store.path(run) / "weights.safetensors").read_bytes()
    teacher_store.discard(run)
    run_group(2, tmp_path, train, str(teacher_store.root), run, 2)
    assert not teacher_store.has(run)
    run_group(2, tmp_path, train, str(teacher_store.root), run, 0)
    assert (teacher_store.path(run) / "weights.safetensors").read_bytes() == reference
    state = safetensors.torch.load(reference)
    assert all(
        bool(value.isfinite().all()) for value in state.values() if value.dtype.is_floating_point
    )


def test_one_process_goes_on_where_two_workers_stopped(teacher_store, tmp_path):
    run = student_run(teacher_store, "kd", seed=9)
    run_group(2, tmp_path, train, str(teacher_store.root), run, 1)
    trained(teacher_store, run)
    assert [line["epoch"] for line in read_metrics(teacher_store.path(run))] == [0, 1, 2]
    assert torch.isfinite(torch.tensor(read_metrics(teacher_store.path(run))[-1]["loss"]))


def test_workers_that_stop_within_an_epoch_go_on_to_equal_weights(teacher_store, tmp_path):
    run = student_run(teacher_store, SAKD(base=CRD(negatives=64), homogeneous=False))
    prepare(teacher_store, run)
    run_group(2, tmp_path, train, str(teacher_store.root), run, 0)
    reference = (teacher_store.path(run) / "weights.safetensors").read_bytes()
    losses = [line["loss"] for line in read_metrics(teacher_store.path(run))]
    teacher_store.discard(run)
    for steps in (1, 3, 0):
        run_group(2, tmp_path, train_within, str(teacher_store.root), run, steps)
    assert (teacher_store.path(run) / "weights.safetensors").read_bytes() == reference
    assert [line["loss"] for line in read_metrics(teacher_store.path(run))] == losses
    teacher_store.discard(run)


def test_three_workers_go_on_to_equal_weights(teacher_store, tmp_path):
    # Sums of three depend on their order.
    run = student_run(teacher_store, "kd", seed=9, optim=Optim(epochs=2, batch=24))
    prepare(teacher_store, run)
    run_group(3, tmp_path, train_within, str(teacher_store.root), run, 0)
    reference = (teacher_store.path(run) / "weights.safetensors").read_bytes()
    teacher_store.discard(run)
    for steps in (2, 0):
        run_group(3, tmp_path, train_within, str(teacher_store.root), run, steps)
    assert (teacher_store.path(run) / "weights.safetensors").read_bytes() == reference
    teacher_store.discard(run)


def test_more_and_fewer_workers_go_on_within_an_epoch(teacher_store, tmp_path):
    run = student_run(teacher_store, "skd", seed=7)
    prepare(teacher_store, run)
    expected = read_metrics(teacher_store.path(run)) if trained(teacher_store, run) else []
    teacher_store.discard(run)
    for world, steps in ((2, 1), (3, 2), (1, 2), (2, 0)):
        run_group(world, tmp_path, train_within, str(teacher_store.root), run, steps)
    lines = read_metrics(teacher_store.path(run))
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for line, other in zip(lines, expected, strict=True):
        # They differ by what each worker's batch norms saw, and by sums of other shares.
        assert line["loss"] == pytest.approx(other["loss"], rel=0.15)
    teacher_store.discard(run)


def test_a_notice_to_one_worker_has_the_first_one_keep_a_checkpoint(teacher_store, tmp_path):
    run = student_run(teacher_store, optim=Optim(epochs=2, batch=4))
    prepare(teacher_store, run)
    run_group(2, tmp_path, train_told, str(teacher_store.root), str(tmp_path), run)
    first, second = (json.loads((tmp_path / f"kept-{rank}.json").read_text()) for rank in range(2))
    # AnyStudent after 8 steps of 24, answered after 8 more; then every epoch's end.
    assert first[0] == [0, 16] and first[-1] == [2, None] and second == []
    teacher_store.discard(run)
