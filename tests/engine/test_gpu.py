"""What holds on a CPU holds on a GPU."""

import pytest
import torch

from raykd import bits
from raykd.codecs import TAILS, Dense, Int8, TopK
from raykd.data.augment import Augment
from raykd.data.images import open_images
from raykd.data.loader import Views
from raykd.data.mixing import Mix
from raykd.data.strong import Strong
from raykd.engine.fit import local_host, train_student
from raykd.engine.journal import read_metrics
from raykd.engine.prepare import open_cache
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.store import Store
from raykd.teachers.topk import largest
from tests.small import digits, prepare, student_run, train_logits

pytestmark = pytest.mark.gpu


def test_draws_are_the_same_on_both():
    ids = torch.arange(10_000)
    for stream in range(3):
        here, there = (bits.draw(7, ids.to(device), 3, stream) for device in ("cpu", "cuda"))
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
    prepare(store, run)
    device, ids = torch.device("cuda"), torch.arange(50)
    here = open_cache(store, train_logits(run), [0], torch.device("cpu")).take(ids, 0, tail=tail)
    there = open_cache(store, train_logits(run), [0], device)
    there.take(ids.to(device), 0, tail=tail)  # maps the view
    there_ids = ids.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = there.take(there_ids, 0, tail=tail)
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
        bits.shuffled(7, ids.to(d), 3, bits.NEGATIVES, places.to(d), counts.to(d))
        for d in ("cpu", "cuda")
    )
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_the_gpu(tmp_path, name):
    store = Store(tmp_path)
    run = student_run(store, name, precision="bfloat16")
    prepare(store, run)
    train_student(store, run, local_host(store, run))
    assert len(read_metrics(store.path(run))) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_trains_on_the_gpu(tmp_path, precision):
    store = Store(tmp_path)
    run = student_run(store, "skd", precision=precision)
    prepare(store, run)
    train_student(store, run, local_host(store, run))
    history = read_metrics(store.path(run))
    assert history[-1]["loss"] < history[0]["loss"]
