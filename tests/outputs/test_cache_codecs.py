"""Caches of each codec: look-ups, shards, builds, comparisons, as of the dense one."""

import shutil

import pytest
import torch

from raykd.core.errors import CacheCorrupt, CacheMismatch
from raykd.core.types import Outputs, Signal
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix
from raykd.methods.base import soft_cross_entropy
from raykd.methods.kd import KD
from raykd.methods.pkt import PKT
from raykd.outputs import reader as cache_module
from raykd.outputs.codecs import Int8, TopK
from raykd.outputs.manifest import MANIFEST, Manifest, Part, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.planning.plan import plan
from raykd.storage import arrow
from raykd.storage.store import Store
from raykd.training.cache_builder import CacheBuild, needed_bytes
from raykd.training.cache_verify import compare
from raykd.training.inputs import live_teacher, open_cache
from tests.small import CPU, build_here, digits, prepare, student_run, train_logits
from tests.tiers import slow_but

CODECS = [Int8(), TopK(k=3), TopK(k=1), TopK(k=9)]
VIEWS = [0, 1, 2]
COOL = KD(temperature=1.0)


def called(codec):
    return f"{codec.name}{getattr(codec, 'k', '')}"


@pytest.fixture(scope="module", params=slow_but(CODECS, [TopK(k=3)]), ids=called)
def made(request, tmp_path_factory):
    """A store with a teacher and the cache of a student, and the student."""
    store = Store(tmp_path_factory.mktemp("store"))
    run = student_run(store, COOL, codec=request.param)
    prepare(store, run)
    return store, run


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, to damage."""
    store, run = made
    shutil.copytree(store.root, tmp_path / "store")
    return Store(tmp_path / "store"), run


def opened(store, run, views=VIEWS):
    return open_cache(store, train_logits(run), views, CPU)


def shards(store, run):
    return sorted(store.path(train_logits(run)).glob("*.arrow"))


def live_of(store, run, ids, view=0):
    train, _ = open_images(store, run.data)
    batch = Views(train, run.shown()).batch(ids, view)
    return live_teacher(store, train_logits(run).wider(), CPU)(batch)


def test_a_cache_answers_like_the_live_teacher(made):
    store, run = made
    ids = torch.tensor([5, 0, 95, 17, 5])
    for view in VIEWS:
        live, found = live_of(store, run, ids, view).logits, opened(store, run).take(ids, view)
        assert found.logits.dtype == torch.float32
        assert found.logits.shape == live.shape
        k = 10
        if run.codec.name == "topk":  # 256 levels may make equals of the two largest
            assert torch.equal(found.logits.argmax(1), live.argmax(1))
            k = run.codec.k
        best = live.topk(k).indices
        mine, theirs = (x.softmax(1).gather(1, best) for x in (found.logits, live))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)  # 256 levels


def test_comparing_finds_nothing_and_tells_what_is_lost(made):
    store, run = made
    comparison = compare(store, train_logits(run), 64, CPU)
    assert comparison.rows == 66  # 22 of each view
    # 256 levels may make equals of the two largest: of one row, here.
    assert comparison.agreement >= (65 / 66 - 1e-9 if run.codec.name == "int8" else 1.0)
    assert comparison.difference < 0.1
    ids = torch.arange(96)
    live, found = live_of(store, run, ids).logits, opened(store, run).take(ids, 0).logits
    # Other rows, so about as much; where a codec loses nothing, both are rounding.
    expected = soft_cross_entropy(found, live, 1.0).item()
    assert comparison.kl == pytest.approx(expected, rel=0.7, abs=1e-6)


def test_comparing_finds_a_cache_that_answers_differently(copied):
    store, run = copied
    folder = store.path(train_logits(run))
    for path in shards(store, run):
        path.unlink()
    (folder / MANIFEST).unlink()
    wrong = run.codec.encode(Outputs(torch.randn(96, 10)), Signal.LOGITS)
    for view in VIEWS:
        write_shard(folder, Part(view, 0, 96), wrong)
    build_here(CacheBuild(store, train_logits(run), VIEWS), CPU)
    with pytest.raises(CacheMismatch, match="away from the live teacher"):
        compare(store, train_logits(run), 64, CPU)


@pytest.mark.parametrize("joined", [0, 1 << 28])
@pytest.mark.parametrize("tail", ["uniform", "ghost"])
def test_a_view_in_many_shards_answers_as_one(made, tmp_path, monkeypatch, joined, tail):
    monkeypatch.setattr(cache_module, "JOINED_BYTES", joined)
    store, run = made
    (first, *_) = shards(store, run)
    columns = arrow.read(first)
    parts = [Part(0, start, min(start + 13, 96)) for start in range(0, 96, 13)]
    written = [
        write_shard(tmp_path, p, {k: v[p.start : p.stop] for k, v in columns.items()})
        for p in parts
    ]
    many = OutputsCache(tmp_path, Manifest(train_logits(run).plain(), "", 96, tuple(written)))
    ids = torch.tensor([95, 3, 3, 50, 13, 12, 0, 77])
    codec = run.codec.readings().get(tail)
    found = many.take(ids, 0, codec=codec)
    expected = opened(store, run).take(ids, 0, codec=codec)
    for name in ("logits", "moments", "kept"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None and other is None) or torch.equal(one, other)


def test_what_an_interrupted_build_left_is_adopted_and_the_rest_is_built(copied):
    store, run = copied
    folder = store.path(train_logits(run))
    good = {path.name: path.read_bytes() for path in shards(store, run)}
    (folder / MANIFEST).unlink()
    shards(store, run)[1].unlink()
    build = CacheBuild(store, train_logits(run), VIEWS)
    assert build.missing == [Part(1, 0, 96)]
    build_here(build, CPU)
    assert {path.name: path.read_bytes() for path in shards(store, run)} == good


def test_a_flipped_byte_is_found_and_named(copied):
    store, run = copied
    path = shards(store, run)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorrupt, match=rf"{path.name}.*truncated or altered"):
        opened(store, run).take(torch.arange(3), 0)


def test_the_bytes_of_a_plan_are_those_that_are_written(made):
    store, run = made
    written = sum(
        column.nbytes for path in shards(store, run) for column in arrow.read(path).values()
    )
    assert needed_bytes(train_logits(run), 96 * len(VIEWS)) == written


def test_embeddings_are_stored_beside_the_logits_and_asked_of_the_teacher_once(made):
    store, run = made
    both = run.model_copy(update={"method": PKT()})
    (job,) = [job for job in plan([run, both]).caches if job.run.split == "train"]
    assert job.run == train_logits(both) == train_logits(run).wider()
    build_here(CacheBuild(store, train_logits(both), [0]), CPU)
    ids = torch.arange(5)
    outputs = opened(store, both, [0]).take(ids, 0)
    live = live_of(store, run, ids)
    torch.testing.assert_close(outputs.embedding, live.embedding, rtol=2e-3, atol=1e-4)
    assert torch.equal(outputs.logits, opened(store, run).take(ids, 0).logits)
    extra = needed_bytes(train_logits(both), 96) - needed_bytes(train_logits(run), 96)
    assert extra == 2 * 96 * live.embedding.shape[1]


def test_mixed_samples_are_cached_like_any_others(made):
    store, run = made
    data = digits(store, limit=96, augment=Augment(pad=1, mix=Mix(alpha=0.5)))
    mixed = run.model_copy(update={"data": data})
    prepare(store, mixed)
    ids = torch.arange(20)
    live, found = live_of(store, mixed, ids).logits, opened(store, mixed).take(ids, 0).logits
    assert (found.argmax(1) == live.argmax(1)).sum() >= 19  # 256 levels may make equals
    assert not torch.equal(found, opened(store, run).take(ids, 0).logits)


def test_each_codec_and_k_has_a_cache_of_its_own_and_each_tail_the_same(tmp_path):
    store = Store(tmp_path)
    tails = [TopK(k=3, tail=tail) for tail in ("uniform", "renormalise", "ghost")]
    runs = [student_run(store, COOL, codec=codec) for codec in tails]
    assert len({train_logits(run) for run in runs}) == 1
    assert len(set(runs)) == 3
    others = [student_run(store, COOL, codec=codec) for codec in CODECS]
    others.append(student_run(store, COOL))
    assert len({store.path(train_logits(run)) for run in others}) == 5
    jobs = plan(runs + others).caches
    assert len([job for job in jobs if job.run.split == "train"]) == 5
    (test,) = [job.run for job in jobs if job.run.split == "test"]
    assert test.codec == "dense"


def test_a_folder_with_the_shards_of_another_codec_is_refused(copied):
    store, run = copied
    folder = store.path(train_logits(run))
    dense = student_run(store, COOL)
    target = store.path(train_logits(dense))
    shutil.copytree(folder, target)
    with pytest.raises(CacheMismatch, match=f"codec: expected 'dense', found '{run.codec.name}'"):
        opened(store, dense)
