"""Laws of training on a GPU."""

import functools
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch

from raykd.config.scale import Scale
from raykd.core import keyed_random
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.outputs.codecs import Dense, Int8, TopK
from raykd.outputs.codecs.topk import TAILS, largest
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.tracking.jsonl import read_metrics
from raykd.training.inputs import open_cache
from raykd.training.learner import Learner
from raykd.training.optim import build_optimiser
from raykd.training.runs import local_host, train
from tests.small import digits, helpers_of, pair, prepare, student_run, train_logits, trained
from tests.training.test_waiting import EXCEPTIONS, OTHERS, called
from tests.training.watched import watched_losses

pytestmark = pytest.mark.gpu


def test_draws_are_the_same_on_both():
    ids = torch.arange(10_000)
    for stream in range(3):
        here, there = (
            keyed_random.draw(7, ids.to(device), 3, stream) for device in ("cpu", "cuda")
        )
        assert torch.equal(here, there.cpu())


def test_a_sample_has_the_same_pixels_on_both(tmp_path):
    data = digits(Store(tmp_path), augment=Augment(pad=2, flip=True))
    train, _ = open_images(Store(tmp_path), data)
    here = Views(train, data)
    there = here.to(torch.device("cuda"))
    ids = torch.tensor([5, 900, 3])
    torch.testing.assert_close(
        there.batch(ids, 4).pixels.cpu(), here.batch(ids, 4).pixels, rtol=1e-6, atol=1e-6
    )


def test_a_cache_answers_on_the_gpu(tmp_path):
    store = Store(tmp_path)
    run = student_run(store)
    prepare(store, run)
    ids = torch.arange(50)
    here = open_cache(store, train_logits(run), [0], torch.device("cpu")).take(ids, 0)
    device = torch.device("cuda")
    there = open_cache(store, train_logits(run), [0], device).take(ids.to(device), 0)
    assert there.logits.device.type == "cuda"
    assert torch.equal(there.logits.cpu(), here.logits)


@pytest.mark.parametrize("codec", [Dense(), Int8(), TopK(k=3)], ids=lambda codec: codec.name)
@pytest.mark.parametrize("tail", TAILS)
def test_a_cache_of_any_codec_answers_on_the_gpu_without_waiting(tmp_path, codec, tail):
    store = Store(tmp_path)
    run = student_run(store, KD(temperature=1.0), codec=codec)
    reading = codec.readings().get(tail)
    prepare(store, run)
    device, ids = torch.device("cuda"), torch.arange(50)
    here = open_cache(store, train_logits(run), [0], torch.device("cpu")).take(
        ids, 0, codec=reading
    )
    there = open_cache(store, train_logits(run), [0], device)
    there.take(ids.to(device), 0, codec=reading)  # maps the view
    there_ids = ids.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = there.take(there_ids, 0, codec=reading)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.logits.cpu(), here.logits)
    assert found.kept is None or torch.equal(found.kept.cpu(), here.kept)


def test_the_largest_of_equal_logits_are_the_same_on_both():
    logits = torch.randn(50, 300).mul(3).round()
    assert torch.equal(largest(logits.cuda(), 20).cpu(), largest(logits, 20))


@pytest.mark.parametrize("mix", [Mix(alpha=0.5), Mix(kind="cutmix")], ids=str)
def test_a_mixed_sample_has_the_same_pixels_and_targets_on_both(tmp_path, mix):
    data = digits(Store(tmp_path), augment=Augment(pad=2, flip=True, mix=mix, strong=Strong()))
    train, _ = open_images(Store(tmp_path), data)
    here = Views(train, data)
    there = here.to(torch.device("cuda"))
    ids = torch.arange(200)
    expected, found = here.batch(ids, 4), there.batch(ids, 4)
    torch.testing.assert_close(found.pixels.cpu(), expected.pixels, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.targets.cpu(), expected.targets, rtol=0, atol=0)


def test_a_shuffle_is_the_same_on_both():
    ids, places, counts = torch.arange(50), torch.arange(40), torch.full((50,), 97)
    here, there = (
        keyed_random.shuffled(7, ids.to(d), 3, keyed_random.NEGATIVES, places.to(d), counts.to(d))
        for d in ("cpu", "cuda")
    )
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_the_gpu(tmp_path, name):
    store = Store(tmp_path)
    run = student_run(store, name, precision="bfloat16")
    prepare(store, run)
    train(store, run, local_host(store, run))
    assert len(read_metrics(store.path(run))) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_trains_on_the_gpu(tmp_path, precision):
    store = Store(tmp_path)
    run = student_run(store, "skd", precision=precision)
    prepare(store, run)
    train(store, run, local_host(store, run))
    history = read_metrics(store.path(run))
    assert history[-1]["loss"] < history[0]["loss"]


@contextmanager
def no_synchronising():
    """A region in which whatever waits for the GPU raises `RuntimeError`."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [*METHODS, *OTHERS], ids=called)
def test_no_step_of_a_method_waits_for_the_gpu(tmp_path, method, precision):
    # All methods but those that say why: kd, skd, dkd, at, crd, stkd with cutmix and the others.
    store = Store(tmp_path)
    optim = Optim(name="adamw", lr=1e-3, epochs=2, batch=32, ema=0.9, clip=1.0)
    augment = Augment(pad=2, flip=True)
    data = digits(store, limit=96, augment=augment)
    run = student_run(store, method, optim=optim, precision=precision, data=data)
    prepare(store, run)
    if run.method.name in EXCEPTIONS:
        with pytest.raises(RuntimeError, match="synchroni"):
            watched_losses(store, run, no_synchronising)
        return
    assert len(watched_losses(store, run, no_synchronising)) == 2


def test_one_kernel_updates_all_weights():
    student, teacher = pair()
    learner = Learner(student, KD(), helpers_of(KD(), student, teacher)).cuda()
    for name in ("sgd", "adamw"):
        optimiser = build_optimiser(Optim(name=name), learner)
        assert all(group["fused"] for group in optimiser.param_groups)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_goes_on_on_the_other_device(tmp_path, name):
    # The optimiser's state and how it updates the weights: fused on a GPU alone.
    for start, end in (("cuda", "cpu"), ("cpu", "cuda")):
        store = Store(tmp_path / start)
        run = student_run(store, optim=Optim(name=name, epochs=2, batch=32, lr=1e-3, ema=0.9))
        prepare(store, run)

        def report(metrics, state, *, last, host):
            type(host).report(host, metrics, state, last=last)
            raise KeyboardInterrupt

        for device, stops in ((start, True), (end, False)):
            host = local_host(store, run)
            host.device = torch.device(device)
            if stops:
                host.report = functools.partial(report, host=host)
                with pytest.raises(KeyboardInterrupt):
                    train(store, run, host)
            else:
                train(store, run, host)
        assert len(read_metrics(store.path(run))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", [True, "reduce-overhead", "max-autotune-no-cudagraphs"])
@pytest.mark.parametrize("method", ["kd", "mlkd", "fitnet", "crd"])
def test_a_compiled_student_learns_what_a_plain_one_does(tmp_path, method, mode):
    store = Store(tmp_path)
    run = student_run(store, method, optim=Optim(epochs=2, batch=32, lr=1e-3))
    prepare(store, run)
    expected = safetensors.torch.load(trained(store, run))
    losses = [line["loss"] for line in read_metrics(store.path(run))]
    store.discard(run)
    train(store, run, local_host(store, run, Scale(compile=mode)))
    assert safetensors.torch.load(trained(store, run)).keys() == expected.keys()
    found = [line["loss"] for line in read_metrics(store.path(run))]
    assert found == pytest.approx(losses, rel=1e-2)
