"""A compiled student learns what a plain one does, and its weights have the same names."""

import pytest
import safetensors.torch
import torch

from raykd.config.scale import Scale
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.models import build
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json
from raykd.tracking.jsonl import read_metrics
from raykd.training.compiled import compiled_as
from raykd.training.learner import Learner
from raykd.training.runs import local_host, train
from tests.process_group import run_group
from tests.small import ALL, batch, helpers_of, outputs_of, pair, prepare, student_run, trained
from tests.training.scale_work import Stop, plainly_together
from tests.training.test_parts import close

COMPILED = Scale(compile=True)


def step(method, compiled):
    """The losses of a step, every gradient, and the state."""
    student, teacher = pair()
    helpers = helpers_of(method, student, teacher)
    learner = Learner(student, method, helpers, compiled=compiled).train()
    learner.to(memory_format=torch.channels_last)
    sample = batch()
    losses, _ = learner(sample, outputs_of(teacher, sample, ALL), 1.0)
    torch.stack([*losses.values()]).sum().backward()
    gradients = {name: value.grad for name, value in learner.named_parameters()}
    return losses, gradients, learner.state_dict()


# Logits; several looks; outputs before a ReLU and helpers; stages that are run again.
@pytest.mark.parametrize("method", ["kd", "mlkd", "ofd", "sakd"], ids=str)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_has_the_losses_and_gradients_of_a_plain_one(method):
    chosen = SAKD(homogeneous=False) if method == "sakd" else METHODS[method]()
    plain, compiled = (step(chosen, compiled) for compiled in (False, True))
    for one, other in zip(plain, compiled, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if value is None:
                assert other[name] is None
                continue
            scale = float(value.detach().double().abs().max())  # float32, fused in another order
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5 * (1 + scale))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_goes_on_compiled_and_back(tmp_path):
    store = Store(tmp_path)
    run = student_run(store, optim=Optim(epochs=3, batch=32, lr=0.01))
    prepare(store, run)
    expected = safetensors.torch.load(trained(store, run))
    losses = [line["loss"] for line in read_metrics(store.path(run))]
    store.discard(run)
    for scale in (Scale(checkpoint_seconds=0), Scale(checkpoint_seconds=0, compile=True)):
        host = local_host(store, run, scale)
        report = host.report

        def reported(metrics, state, *, last, report=report):
            report(metrics, state, last=last)
            raise Stop

        host.report = reported
        with pytest.raises(Stop):
            train(store, run, host)
    found = safetensors.torch.load(trained(store, run))
    assert found.keys() == expected.keys() == build("resnet8", 10).network.state_dict().keys()
    again = [line["loss"] for line in read_metrics(store.path(run))]
    assert again == pytest.approx(losses, rel=1e-2)  # a step's difference grows in later ones
    assert again[0] == losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*resource_tracker.*")
def test_workers_compile_too(tmp_path):
    store = Store(tmp_path / "store")
    run = student_run(store, optim=Optim(epochs=2, batch=32, lr=0.01))
    prepare(store, run)
    scales = [
        Scale(compile=compiled, shard=shard, accumulate=2)
        for shard in ("ddp", "fsdp")
        for compiled in (False, True)
    ]
    work = [(scale, run) for scale in scales]
    run_group(2, tmp_path, plainly_together, str(store.root), str(tmp_path), work)
    found = [
        torch.load(tmp_path / str(number) / "found.pt", weights_only=True) for number in range(4)
    ]
    for other in found[1:]:
        close(other, found[0])


def test_a_result_says_why_a_student_was_not_compiled():
    assert compiled_as(KD(), True) is True
    assert compiled_as(KD(), False) is False
    assert compiled_as(METHODS["jacobian"](), "reduce-overhead") == (
        "no: its gradients are differentiated again"
    )
    assert compiled_as(METHODS["ft"]().prelude().method, True) == (
        "no: the student has no part in it"
    )


@pytest.mark.slow
def test_a_method_that_differentiates_again_trains_beside_a_plain_student(tmp_path):
    store = Store(tmp_path)
    run = student_run(store, "jacobian")
    prepare(store, run)
    expected = trained(store, run)
    store.discard(run)
    train(store, run, local_host(store, run, COMPILED))
    assert trained(store, run) == expected
    assert read_json(store.path(run) / "result.json")["compile"].startswith("no: ")
