"""Students of a teacher's last map: live, and from caches of each codec."""

import pytest
import torch

from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.core.types import Signal
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods.base import Method
from raykd.methods.combine import Combine
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.outputs.codecs import PCA, Float16, Int8Channels
from raykd.outputs.manifest import read_manifest
from raykd.outputs.statistics import STATISTICS, seal_of
from raykd.planning.plan import plan
from raykd.storage.store import Store
from raykd.tasks import Features
from raykd.training.cache_builder import CacheBuild, needed_bytes
from raykd.training.cache_verify import compare
from raykd.training.checkpointing import read_result
from raykd.training.inputs import live_teacher, open_cache, teachers
from raykd.training.runs import local_host, train
from tests.small import CPU, build_here, prepare, student_run
from tests.tiers import slow_but

BOTH = Combine(combine=(FeatureDistillation(), DenseDistillation(grid=2)))
CODECS = {
    "float16": {},
    "int8": {"map_codec": Int8Channels(), "embedding_codec": Int8Channels()},
    "pca": {"map_codec": PCA(rank=16), "embedding_codec": PCA(rank=32, tolerance=0.1)},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def run_of(store, method: Method = BOTH, **fields):
    return student_run(store, method, task=Features(), **{"views": 1} | fields)


def batch_of(store, run):
    images, _ = open_images(store, run.data)
    return Views(images, run.shown()).batch(torch.arange(32), 0)


@pytest.mark.parametrize("codec", slow_but(CODECS, ["pca"]))
def test_a_cache_answers_like_the_live_teacher(store, codec):
    run = run_of(store, **CODECS[codec])
    prepare(store, run)
    batch, cache = batch_of(store, run), run.outputs_at(0)
    live = live_teacher(store, cache, CPU, run.method.needs())(batch)
    source = teachers(store, run, CPU)(0)
    assert source is not None
    cached = source(batch)
    assert cache.signals() == Signal.EMBEDDING | Signal.MAP and not cached.has_logits
    pooled = torch.nn.functional.adaptive_avg_pool2d(live.map, 2)
    assert cached.map_stage == live.map_stage
    for mine, theirs in ((cached.map, pooled), (cached.embedding, live.embedding)):
        lost = (mine - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()
        assert lost < {"float16": 1e-5, "int8": 1e-3, "pca": 0.3}[codec]
    comparison = compare(store, cache, 64, CPU)
    assert comparison.kl is None and 0 <= (comparison.lost or 0.0) < 0.3
    manifest = read_manifest(store.path(cache))
    assert manifest is not None
    (shard,) = manifest.shards
    assert 0 <= shard.bytes - needed_bytes(cache, 96) < 2500  # head and foot of the file


@pytest.mark.slow
@pytest.mark.parametrize("method", [BOTH, DenseDistillation(distance="mse", blocks=2)], ids=str)
def test_a_student_learns_from_the_cache_as_from_the_teacher(store, method):
    runs = [run_of(store, method), run_of(store, method, source="live")]
    prepare(store, *runs)
    cached, live = (
        (train(store, run, local_host(store, run)), read_result(store.path(run)))[1]["last"]
        for run in runs
    )
    for loss in {"loss_stage3", "loss_embedding"} & cached.keys():
        assert cached[loss] == pytest.approx(live[loss], rel=1e-3)


@pytest.mark.slow
def test_a_shard_is_read_with_the_statistics_that_it_was_written_by_alone(store):
    run = run_of(store, **CODECS["int8"])
    prepare(store, run)
    cache = run.outputs_at(0)
    path = store.path(cache) / STATISTICS
    content, seal = path.read_bytes(), seal_of(path).read_bytes()
    try:
        path.write_bytes(altered(content))
        seal_of(path).unlink()  # as in caches of earlier versions
        with pytest.raises(CacheCorrupt, match="was not written by the statistics"):
            open_cache(store, cache, [0], CPU).take(torch.arange(3), 0)
        path.unlink()  # and computed again, they are the same
        build_here(CacheBuild(store, cache, [0, 1]), CPU)
        assert (path.read_bytes(), seal_of(path).read_bytes()) == (content, seal)
    finally:
        path.write_bytes(content)
    assert open_cache(store, cache, [0, 1], CPU).take(torch.arange(3), 1).map.isfinite().all()


def test_statistics_that_were_altered_before_the_first_shard_are_refused(store):
    run = run_of(store, DenseDistillation(), map_codec=PCA(rank=24))
    prepare(store, run)
    cache = run.outputs_at(0)
    folder = store.path(cache)
    path = folder / STATISTICS
    content = path.read_bytes()
    for shard in folder.glob("view-*.arrow"):
        shard.unlink()
    try:
        path.write_bytes(altered(content))  # one bit of a number
        with pytest.raises(CacheCorrupt, match=f"{path}: was altered"):
            build_here(CacheBuild(store, cache, [0]), CPU)
        assert not [*folder.glob("view-*.arrow")]
    finally:
        path.write_bytes(content)
    build_here(CacheBuild(store, cache, [0]), CPU)
    assert open_cache(store, cache, [0], CPU).take(torch.arange(3), 0).map.isfinite().all()


def test_a_damaged_seal_of_statistics_is_all_that_has_to_be_removed(store):
    run = run_of(store, DenseDistillation(), map_codec=PCA(rank=24))
    prepare(store, run)
    cache = run.outputs_at(0)
    seal = seal_of(store.path(cache) / STATISTICS)
    content = seal.read_bytes()
    for damaged in (b"", content[:-20], content.replace(b"checksum", b"cheksum")):
        seal.write_bytes(damaged)
        with pytest.raises(CacheCorrupt, match=f"{seal}: cannot be read.*; remove this file"):
            open_cache(store, cache, [0], CPU)
    seal.unlink()
    assert open_cache(store, cache, [0], CPU).take(torch.arange(3), 0).map.isfinite().all()


def altered(content):
    """The content with another last bit."""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_nothing_is_computed_for_a_codec_that_loses_too_much(store):
    run = run_of(store, DenseDistillation(), map_codec=PCA(rank=1, tolerance=0.01))
    with pytest.raises(ConfigError, match="loses"):
        prepare(store, run)
    assert not [*store.path(run.outputs_at(0)).glob("*.arrow")]


def test_more_axes_than_channels_are_refused_before_anything_is_computed(store):
    run = run_of(store, DenseDistillation(), map_codec=PCA(rank=65))
    with pytest.raises(ConfigError, match=r"run\.map_codec\.rank: 65 axes"):
        needed_bytes(run.outputs_at(0), 1)


def test_a_map_alone_and_each_codec_have_caches_of_their_own(store):
    runs = [run_of(store, **fields) for fields in CODECS.values()]
    alone = run_of(store, DenseDistillation())
    assert alone.outputs_at(0).signals() == Signal.MAP
    assert run_of(store, map_codec=Float16()) == runs[0]
    jobs = [job for job in plan([*runs, alone]).caches if job.run.split == "train"]
    assert len(jobs) == 4
    # A codec of embeddings is of no account where none are stored.
    logits = student_run(store)
    assert student_run(store, embedding_codec=PCA()).caches_at(0) == logits.caches_at(0)
    assert logits.outputs_at(0).label == "dense"
    assert runs[2].outputs_at(0).label == "embedding pca 32, map pca 16 of 2 x 2"
