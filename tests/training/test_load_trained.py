"""A finished network, as the store has it."""

import pytest
import torch
from torch import nn

from raykd.core.errors import CacheCorrupt
from raykd.data.loading.loader import Views
from raykd.methods import METHODS
from raykd.storage.store import Store, read_json
from raykd.training.checkpointing import RESULT
from raykd.training.evaluation import evaluate
from raykd.training.load_trained import finished
from raykd.training.runs import local_host
from tests.small import prepare, student_run, trained
from tests.tiers import slow_but


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(["kd", "simkd", "sakd", "combine"], ["simkd"]))
def test_it_answers_as_it_did_at_the_end_of_its_training(store, method):
    skd = METHODS["skd"](variant="l2")
    chosen = {
        "sakd": METHODS["sakd"](base=skd),
        "combine": METHODS["combine"](combine=(skd, METHODS["at"]())),
    }.get(method, method)
    run = student_run(store, chosen)
    prepare(store, run)
    trained(store, run)
    made = finished(store, run)
    test = Views(made.test, run.data.test())
    host = local_host(store, run)
    metrics = evaluate(made.network, made.method, made.helpers, test, None, host)
    last = read_json(store.path(run) / RESULT)["last"]
    assert metrics["top1"] == last["top1"]
    assert metrics["test_loss"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert not made.network.training
    assert not any(module.training for module in made.helpers.modules())


@pytest.mark.slow
def test_of_a_teacher_it_is_the_last_epoch(store):
    run = student_run(store, "kd")
    prepare(store, run)
    made = finished(store, run.teacher)
    pixels = Views(made.test, run.data.test()).batch(torch.arange(len(made.test)), 0)
    top1 = 100 * float((made.answer(pixels.pixels).argmax(1) == pixels.targets).float().mean())
    assert top1 == pytest.approx(read_json(store.path(run.teacher) / RESULT)["last"]["top1"])
    assert isinstance(made.helpers, nn.ModuleDict)
    assert len(made.helpers) == 0


def test_damaged_weights_are_named(store):
    run = student_run(store, "skd")
    prepare(store, run)
    trained(store, run)
    for name in ("weights.safetensors", "weights-helpers.safetensors"):
        path = store.path(run) / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CacheCorrupt, match=name):
            finished(store, run)
        path.unlink()
        with pytest.raises(CacheCorrupt, match=name):
            finished(store, run)
        path.write_bytes(data)
