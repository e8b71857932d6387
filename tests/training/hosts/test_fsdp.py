"""Workers that share out the weights make the student of workers that each hold all of them."""

import pytest
import safetensors.torch
import torch

from raykd.config.scale import Scale
from raykd.methods.crd import CRD
from raykd.models import build
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.runs import train
from tests.process_group import run_group
from tests.small import CPU, prepare, student_run, trained
from tests.training.scale_work import (
    Stop,
    begin,
    each,
    plainly_alone,
    plainly_together,
    refused,
    train_each,
)
from tests.training.test_parts import close

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*resource_tracker.*"),
]
DDP, FSDP = Scale(shard="ddp"), Scale(shard="fsdp")
SGD = Optim(epochs=2, batch=32, lr=0.01)
ADAM = Optim(name="adamw", epochs=2, batch=32, lr=1e-3, schedule="cosine", ema=0.9, clip=1.0)
# Where a student begins, and where it goes on.
RESUMED = ["fsdp, fsdp", "fsdp, ddp", "fsdp, one", "ddp, ddp", "ddp, one", "one, fsdp", "one, ddp"]
# Small rates: what is rounded in another order grows by training.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def students(store):
    """Logits, helpers with weights, several looks, stages run again, one preactivation."""
    gentle = SGD.model_copy(update={"lr": 1e-3})
    names = ["fitnet", "mlkd", "ofd", "sakd"]
    plain = [student_run(store, name, optim=gentle) for name in names]
    return [student_run(store, "kd", optim=ADAM), *plain]


def resumed(store):
    """A student with a memory, helpers with weights, moments of its optimiser, and an average."""
    return student_run(store, CRD(negatives=64), optim=ADAM)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Stores that groups and this process filled, by name."""
    folder = tmp_path_factory.mktemp("done")
    ready = Store(folder / "ready")
    run = resumed(ready)
    prepare(ready, *students(ready), run, student_run(ready, "ctkd"))
    stores = {name: Store(folder / name) for name in ("ddp", "fsdp", *RESUMED)}
    for store in stores.values():
        store.root.mkdir()
        for kind in ("images", "teachers", "caches"):
            (store.root / kind).symlink_to(ready.root / kind)
    scales = {"ddp": DDP, "fsdp": FSDP}
    roots = {name: str(store.root) for name, store in stores.items()}
    parts = [(Scale(shard="fsdp", accumulate=4), student_run(ready, optim=SGD))]
    (folder / "plain").mkdir()
    first = [
        (train_each, [(roots[name], scale, run) for run in students(ready)])
        for name, scale in scales.items()
    ]
    first += [(plainly_together, str(ready.root), str(folder / "plain"), parts)]
    first += [(refused, str(ready.root), str(folder), FSDP, student_run(ready, "ctkd"))]
    for name in RESUMED:
        start = name.split(", ")[0]
        if start == "one":
            begin_alone(stores[name], run)
        else:
            first.append((begin, roots[name], scales[start], run, 1))
    ends = {name: name.split(", ")[1] for name in RESUMED}
    work = [(roots[name], scales[end], run) for name, end in ends.items() if end != "one"]
    run_group(2, folder, each, first)
    run_group(2, folder, each, [(train_each, work)])
    for name, end in ends.items():
        if end == "one":
            trained(stores[name], run)
    return folder, ready, stores


def begin_alone(store, run):
    """Train the first epoch of a run in this process."""

    class Stopping(LocalHost):
        def report(self, metrics, state, *, last):
            super().report(metrics, state, last=last)
            raise Stop

    with pytest.raises(Stop):
        train(store, run, Stopping(Checkpoints(store.path(run)), CPU))


def alike(one, other, run):
    """True where two stores have the same student, but for rounding."""
    a, b = (safetensors.torch.load_file(s.path(run) / "weights.safetensors") for s in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], **CLOSE, msg=f"{run.method.label}: {name}")
    for mine, theirs in zip(*(read_metrics(s.path(run)) for s in (one, other)), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-3)


def test_a_student_is_the_same_whether_weights_are_shared_out_or_not(done):
    _, ready, stores = done
    for run in students(ready):
        alike(stores["fsdp"], stores["ddp"], run)
        result = read_json(stores["fsdp"].path(run) / "result.json")
        assert (result["workers"], result["shard"]) == (2, "fsdp")
        assert not (stores["fsdp"].path(run) / "checkpoint.pt").exists()


def test_released_weights_are_whole_and_plainly_named(done):
    _, ready, stores = done
    for run in students(ready):
        for path in stores["fsdp"].path(run).glob("weights*.safetensors"):
            twin = stores["ddp"].path(run) / path.name
            found, expected = (safetensors.torch.load_file(p) for p in (path, twin))
            assert {k: v.shape for k, v in found.items()} == {
                k: v.shape for k, v in expected.items()
            }
        state = safetensors.torch.load_file(stores["fsdp"].path(run) / "weights.safetensors")
        build("resnet8", 10).network.load_state_dict(state)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fsdp, fsdp", "ddp, ddp"),
        ("fsdp, ddp", "ddp, ddp"),
        ("fsdp, one", "ddp, one"),
        ("one, fsdp", "one, ddp"),
    ],
)
def test_a_run_goes_on_where_any_host_stopped(done, one, other):
    _, ready, stores = done
    alike(stores[one], stores[other], resumed(ready))


def test_shared_out_steps_in_parts_equal_whole_ones_of_one_process(done, tmp_path):
    folder, ready, _ = done
    found = torch.load(folder / "plain" / "0" / "found.pt", weights_only=True)
    close(found, plainly_alone(ready, student_run(ready, optim=SGD), tmp_path / "one", Scale()))


def test_what_cannot_be_shared_out_is_refused(done):
    folder, _, _ = done
    for rank in range(2):
        assert (folder / f"error-{rank}.txt").read_text() == (
            "scale.shard: helpers.temperature.theta of method 'ctkd' is one number, which cannot "
            "be shared out; choose ddp"
        )
