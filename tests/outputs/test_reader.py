"""The Arrow cache: what a look-up gives, and what happens when files are not as they were."""

import shutil

import pytest
import torch

from raykd.core.errors import CacheCorrupt, CacheMismatch
from raykd.core.types import Outputs, Signal
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods import METHODS
from raykd.methods.base import Looks, Method
from raykd.outputs import reader as cache_module
from raykd.outputs.codecs import Dense
from raykd.outputs.manifest import MANIFEST, Manifest, Part, gaps, split, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json, write_json
from raykd.training.cache_builder import CacheBuild
from raykd.training.cache_verify import compare
from raykd.training.checkpointing import RESULT
from raykd.training.inputs import live_teacher, open_cache
from raykd.training.runs import ShardMaker, local_host, train
from raykd.training.weights import checksums
from tests.each import each
from tests.small import (
    ALL,
    CPU,
    build_here,
    digits,
    helpers_of,
    pair,
    prepare,
    student_run,
    teacher_run,
    train_logits,
)
from tests.tiers import slow_but

VIEWS = [0, 1, 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a teacher and the cache of a student of three epochs."""
    store = Store(tmp_path_factory.mktemp("store"))
    run = student_run(store)
    prepare(store, run)
    return store, run


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, to damage."""
    store, run = made
    shutil.copytree(store.root, tmp_path / "store")
    return Store(tmp_path / "store"), run


def shards(store, run):
    return sorted(store.path(train_logits(run)).glob("*.arrow"))


@pytest.mark.slow
def test_a_cache_gives_the_outputs_of_the_live_teacher(made):
    store, run = made
    logits = train_logits(run)
    cache = open_cache(store, logits, VIEWS, CPU)
    teacher = live_teacher(store, logits, CPU)
    train, _ = open_images(store, run.data)
    for view in VIEWS:
        batch = Views(train, run.data).batch(torch.tensor([5, 0, 95, 17, 5]), view)
        live, stored = teacher(batch).logits, cache.take(batch.ids, view).logits
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored, live, rtol=2e-3, atol=2e-3)  # float16


ONE_LOOK = [
    name
    for name, method in METHODS.items()
    if method().needs() == Signal.LOGITS and method().looks() == Looks()
]


@each("name", slow_but(ONE_LOOK, ["kd", "dist"]))
def test_a_cache_gives_the_losses_of_the_live_teacher(made, name):
    store, run = made
    method: Method = METHODS[name]()
    logits = train_logits(run)
    cache, teacher = open_cache(store, logits, VIEWS, CPU), live_teacher(store, logits, CPU)
    train, _ = open_images(store, run.data)
    batch = Views(train, run.data).batch(torch.arange(32), 1)
    student, network = pair()
    helpers = helpers_of(method, student, network)
    mine = student.outputs(batch.pixels, ALL)
    live = method.losses(mine, teacher(batch), batch, helpers)
    stored = method.losses(mine, cache.take(batch.ids, 1), batch, helpers)
    for spot, loss in live.items():
        torch.testing.assert_close(stored[spot], loss, rtol=2e-3, atol=1e-5)  # float16


def test_views_of_a_sample_have_outputs_of_their_own(made):
    store, run = made
    cache = open_cache(store, train_logits(run), VIEWS, CPU)
    ids = torch.arange(96)
    assert not torch.equal(cache.take(ids, 0).logits, cache.take(ids, 1).logits)


@each("joined", [0, 1 << 28])
def test_a_view_in_many_shards_answers_as_one(made, tmp_path, monkeypatch, joined):
    monkeypatch.setattr(cache_module, "JOINED_BYTES", joined)
    store, run = made
    whole = open_cache(store, train_logits(run), VIEWS, CPU)
    ids = torch.arange(96)
    columns = Dense().encode(whole.take(ids, 0), Signal.LOGITS)
    parts = [Part(0, start, min(start + 13, 96)) for start in range(0, 96, 13)]
    written = [
        write_shard(tmp_path, p, {k: v[p.start : p.stop] for k, v in columns.items()})
        for p in parts
    ]
    many = OutputsCache(tmp_path, Manifest({}, "", 96, tuple(written)))
    chosen = torch.tensor([95, 3, 3, 50, 13, 12, 0, 77])
    assert torch.equal(many.take(chosen, 0).logits, whole.take(chosen, 0).logits)


def test_embeddings_come_from_the_cache_when_it_was_made_with_them(made):
    store, run = made
    logits = train_logits(run).model_copy(update={"embedding": True})
    build_here(CacheBuild(store, logits, [0]), CPU)
    outputs = open_cache(store, logits, [0], CPU).take(torch.arange(5), 0)
    train, _ = open_images(store, run.data)
    batch = Views(train, run.data).batch(torch.arange(5), 0)
    live = live_teacher(store, logits, CPU)(batch)
    torch.testing.assert_close(outputs.embedding, live.embedding, rtol=2e-3, atol=1e-4)


def test_a_second_build_has_nothing_to_do(made):
    store, run = made
    build = CacheBuild(store, train_logits(run), VIEWS)
    assert build.missing == []
    before = [path.stat().st_mtime_ns for path in shards(store, run)]
    build_here(build, CPU)
    assert [path.stat().st_mtime_ns for path in shards(store, run)] == before


def test_a_cache_grows_by_the_views_that_are_missing(copied):
    store, run = copied
    build = CacheBuild(store, train_logits(run), [*VIEWS, 3])
    assert build.missing == [Part(3, 0, 96)]
    build_here(build, CPU)
    assert open_cache(store, train_logits(run), [*VIEWS, 3], CPU).manifest.views() == [0, 1, 2, 3]


def test_what_an_interrupted_build_finished_is_adopted(copied):
    store, run = copied
    folder = store.path(train_logits(run))
    (folder / MANIFEST).unlink()  # the manifest comes last
    (folder / ".view-000002.arrow.abcd.tmp").write_bytes(b"half a shard")
    assert CacheBuild(store, train_logits(run), VIEWS).missing == []
    assert open_cache(store, train_logits(run), VIEWS, CPU).take(torch.arange(3), 2)


@pytest.mark.parametrize("place", slow_but(["first", "middle", "last"], ["middle"]))
def test_one_flipped_byte_in_any_shard_is_found_and_named(copied, place):
    store, run = copied
    for path in shards(store, run):
        data = bytearray(path.read_bytes())
        position = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
        data[position] ^= 1
        path.write_bytes(data)
    for view in VIEWS:
        cache = open_cache(store, train_logits(run), VIEWS, CPU)
        with pytest.raises(CacheCorrupt, match=rf"view-{view:06d}.*truncated or altered"):
            cache.take(torch.arange(3), view)


def test_a_truncated_or_missing_shard_is_found_and_named(copied):
    store, run = copied
    first, second, _ = shards(store, run)
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    cache = open_cache(store, train_logits(run), VIEWS, CPU)
    with pytest.raises(CacheCorrupt, match=f"{first.name}.*truncated"):
        cache.take(torch.arange(3), 0)
    with pytest.raises(CacheCorrupt, match=f"{second.name}.*missing"):
        cache.take(torch.arange(3), 1)


def test_a_damaged_shard_is_computed_again_and_the_others_are_kept(copied):
    store, run = copied
    first, second, third = shards(store, run)
    good = first.read_bytes()
    first.write_bytes(good[:100])
    kept = [path.stat().st_mtime_ns for path in (second, third)]
    said = []
    build = CacheBuild(store, train_logits(run), VIEWS, said.append)
    assert build.missing == [Part(0, 0, 96)]
    assert first.name in said[0]
    build_here(build, CPU)
    assert first.read_bytes() == good
    assert [path.stat().st_mtime_ns for path in (second, third)] == kept


def test_a_cache_of_another_recipe_is_refused_with_every_difference(copied):
    store, run = copied
    folder = store.path(train_logits(run))
    manifest = read_json(folder / MANIFEST)
    manifest["recipe"]["data"]["augment"]["pad"] = 4
    manifest["recipe"]["teacher"]["optim"]["lr"] = 0.1
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(CacheMismatch) as caught:
        open_cache(store, train_logits(run), VIEWS, CPU)
    text = str(caught.value)
    assert "data.augment.pad: expected 1, found 4" in text
    assert "teacher.optim.lr: expected 0.05, found 0.1" in text


def test_a_cache_of_other_teacher_weights_is_refused(copied):
    store, run = copied
    folder = store.path(run.teacher)
    weights = folder / "weights-0002.safetensors"
    weights.write_bytes((folder / "weights-0001.safetensors").read_bytes())
    write_json(folder / RESULT, read_json(folder / RESULT) | {"weights": checksums(folder)})
    with pytest.raises(CacheMismatch, match="teacher's weights"):
        open_cache(store, train_logits(run), VIEWS, CPU)


@pytest.mark.parametrize("what", ["another checkpoint", "missing"])
def test_a_damaged_teacher_is_named_and_not_its_good_cache(copied, what):
    store, run = copied
    folder = store.path(run.teacher)
    path = folder / "weights-0002.safetensors"
    kept = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes((folder / "weights-0001.safetensors").read_bytes())
    with pytest.raises(CacheCorrupt, match=r"teachers/.*weights-0002.*caches are not damaged"):
        open_cache(store, train_logits(run), VIEWS, CPU)
    # What it says can be done: the training gives the same bytes, and the cache goes on serving.
    store.discard(run.teacher)
    train(store, run.teacher, local_host(store, run.teacher))
    assert path.read_bytes() == kept
    assert open_cache(store, train_logits(run), VIEWS, CPU).manifest.views() == VIEWS


def test_a_cache_that_lacks_a_view_is_refused_before_training(made):
    store, run = made
    with pytest.raises(CacheMismatch, match=r"the first is 7; `raykd precompute` fills"):
        open_cache(store, train_logits(run), [0, 7], CPU)


def test_one_flipped_byte_in_the_teachers_weights_is_found_and_named(copied):
    store, run = copied
    path = store.path(run.teacher) / "weights-0002.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorrupt, match=r"weights-0002.*truncated or altered; remove"):
        live_teacher(store, train_logits(run), CPU)


@each("text", ["{", '{"format": 1}', '{"format": 99}'])
def test_a_manifest_that_cannot_be_read_is_an_error_that_names_it(copied, text):
    store, run = copied
    path = store.path(train_logits(run)) / MANIFEST
    path.write_text(text)
    with pytest.raises((CacheCorrupt, CacheMismatch), match=MANIFEST):
        open_cache(store, train_logits(run), VIEWS, CPU)


def test_a_comparison_finds_a_cache_that_answers_differently(copied):
    store, run = copied
    logits = train_logits(run)
    assert compare(store, logits, 64, CPU).difference < 0.05
    folder = store.path(logits)
    for path in shards(store, run):
        path.unlink()
    (folder / MANIFEST).unlink()
    wrong = Dense().encode(Outputs(torch.randn(96, 10)), Signal.LOGITS)
    for view in VIEWS:
        write_shard(folder, Part(view, 0, 96), wrong)
    build_here(CacheBuild(store, logits, VIEWS), CPU)
    with pytest.raises(CacheMismatch, match="away from the live teacher"):
        compare(store, logits, 64, CPU)


def test_gaps_are_what_no_shard_covers(tmp_path):
    columns = {"logits": torch.zeros(10, 2, dtype=torch.float16), "maximum": torch.zeros(10)}
    written = [write_shard(tmp_path, Part(0, s, s + 10), columns) for s in (10, 30)]
    assert gaps(written, 0, 50) == [Part(0, 0, 10), Part(0, 20, 30), Part(0, 40, 50)]
    assert gaps(written, 1, 50) == [Part(1, 0, 50)]
    whole = [Part(1, 0, 256), Part(1, 256, 512), Part(1, 512, 600)]
    assert split([Part(1, 0, 600)], 2) == whole  # in whole forwards of the teacher


def test_teachers_of_different_epochs_have_caches_of_their_own(made):
    store, run = made
    early = train_logits(run).model_copy(update={"anchor": 1})
    build_here(CacheBuild(store, early, [0]), CPU)
    late = open_cache(store, train_logits(run), [0], CPU).take(torch.arange(4), 0)
    assert not torch.equal(
        open_cache(store, early, [0], CPU).take(torch.arange(4), 0).logits, late.logits
    )
    assert store.path(early) != store.path(train_logits(run))


def test_no_bit_of_the_outputs_depends_on_how_the_build_was_cut(made, tmp_path):
    store, run = made
    longer = train_logits(run).model_copy(update={"data": digits(store, limit=700)})
    build_here(CacheBuild(store, longer, [0]), CPU)
    whole = open_cache(store, longer, [0], CPU)
    maker = ShardMaker(store, longer, CPU)
    maker.folder = tmp_path
    pieces = tuple(maker.make(part) for part in split([Part(0, 0, 700)], 100))
    assert len(pieces) == 3
    cut = OutputsCache(tmp_path, Manifest({}, "", 700, pieces))
    ids = torch.randperm(700)
    assert torch.equal(cut.take(ids, 0).logits, whole.take(ids, 0).logits)


def test_a_teacher_with_other_epochs_is_another_artefact(made):
    store, run = made
    longer = teacher_run(store, optim=Optim(epochs=3, batch=32))
    assert store.path(longer) != store.path(run.teacher)
