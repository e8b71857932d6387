"""Students of functions of a teacher's maps: live, and from the columns of caches."""

import pytest
import torch
from pydantic import ValidationError

from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.core.types import Outputs, Shapes, Signal
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods.at import AT
from raykd.methods.base import Method
from raykd.methods.columns import StageMaps
from raykd.methods.combine import Combine
from raykd.methods.fitnet import FitNet
from raykd.methods.irg import IRG
from raykd.methods.kd import KD
from raykd.methods.reviewkd import ReviewKD
from raykd.methods.sakd import SAKD
from raykd.methods.sp import SP
from raykd.outputs.codecs import PCA, Float16, Float32, Int8Channels
from raykd.outputs.manifest import read_manifest
from raykd.outputs.statistics import fitted
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.teachers.source import CachedTeacher
from raykd.training.cache_builder import needed_bytes
from raykd.training.cache_verify import compare
from raykd.training.checkpointing import read_result
from raykd.training.inputs import live_teacher, teachers
from raykd.training.runs import local_host, train
from tests.small import CPU, prepare, student_run
from tests.tiers import slow_but

EVERY_KIND = Combine(
    combine=(AT(source="cache"), SP(source="cache"), IRG(source="cache"), ReviewKD(source="cache"))
)
CODECS = {
    "float16": None,
    "float32": Float32(),
    "int8": Int8Channels(),
    "pca": PCA(rank=1, tolerance=1.0),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def run_of(store, method: Method = EVERY_KIND, **fields):
    return student_run(store, method, **{"views": 1} | fields)


def whole_view(store, run):
    """All rows at once, as the build of a cache asks for them."""
    images, _ = open_images(store, run.data)
    return Views(images, run.shown()).batch(torch.arange(len(images)), 0)


@pytest.mark.parametrize("codec", slow_but(CODECS, ["float16", "int8"]))
def test_a_row_of_a_cache_is_that_of_the_live_teacher(store, codec):
    run = run_of(store, derived_codec=CODECS[codec])
    prepare(store, run)
    batch, cache = whole_view(store, run), run.outputs_at(0)
    live = live_teacher(store, cache, CPU, run.method.needs())(batch)
    source = teachers(store, run, CPU)(0)
    assert source is not None and run.cached()
    cached = source(batch)
    assert not live.features and not cached.features
    assert [*cached.derived] == [*live.derived]
    for name, column in live.derived.items():
        if codec in ("float16", "float32"):
            rounded = column.half().float() if codec == "float16" else column
            assert torch.equal(cached.derived[name], rounded), name
        spread = (column - column.mean(0)).square().sum()
        lost = (cached.derived[name] - column).square().sum() / spread
        assert lost < {"float16": 1e-5, "float32": 1e-9, "int8": 0.01, "pca": 2.0}[codec], name
    comparison = compare(store, cache, 64, CPU)
    assert comparison.lost is not None and comparison.lost < 1
    manifest = read_manifest(store.path(cache))
    assert manifest is not None
    (shard,) = manifest.shards
    assert 0 <= shard.bytes - needed_bytes(cache, 96) < 5000  # head and foot of the file


def test_a_student_learns_from_the_columns_as_from_the_teacher_and_needs_no_network(store):
    slowly = Optim(epochs=2, batch=32, lr=1e-3)  # large steps would make much of small differences
    methods = AT(source="cache", weight=1.0), AT(weight=1.0)
    cached, live = (run_of(store, method, optim=slowly) for method in methods)
    prepare(store, cached, live)
    assert isinstance(teachers(store, cached, CPU)(0), CachedTeacher)
    for run in (cached, live):
        train(store, run, local_host(store, run))
    losses = [read_result(store.path(run))["last"] for run in (cached, live)]
    spots = [name for name in losses[0] if name.startswith("loss_stage")]
    assert len(spots) == 3
    for spot in spots:
        assert losses[0][spot] == pytest.approx(losses[1][spot], rel=1e-3)


@pytest.mark.parametrize("mode", ["always", "random"])
def test_spot_adaptive_distillation_over_columns_gives_the_losses_of_live_maps(store, mode):
    found = []
    for source in ("cache", "live"):
        base = Combine(combine=(AT(source=source), FitNet(source=source)))
        run = run_of(store, SAKD(base=base, mode=mode))
        assert run.cached() == (source == "cache")
        prepare(store, run)
        batch = whole_view(store, run)
        teacher = live_teacher(store, run.outputs_at(0), CPU, run.method.needs())
        student = live_teacher(store, run.outputs_at(0), CPU, run.method.student_needs()).network
        outputs = student.outputs(batch.pixels, run.method.student_needs())
        shapes = Shapes(10, 64, {k: v.shape[1:] for k, v in outputs.features.items()})
        torch.manual_seed(0)
        helpers = run.method.helpers(shapes, shapes, batch.targets)
        found.append(run.method.losses(outputs, teacher(batch), batch, helpers))
    assert found[0].keys() == found[1].keys()
    for spot, loss in found[0].items():
        assert torch.equal(loss, found[1][spot]), spot


def test_each_function_and_codec_has_a_cache_of_its_own(store):
    methods = (
        KD(),
        AT(source="cache"),
        FitNet(source="cache"),
        FitNet(source="cache", stage="stage1"),
    )
    runs = [run_of(store, method) for method in methods]
    runs.append(run_of(store, methods[1], derived_codec=Int8Channels()))
    caches = [run.outputs_at(0) for run in runs]
    assert len({fingerprint(cache) for cache in caches}) == 5
    # A codec of columns is of no account where none are stored, and neither is the order of parts.
    assert run_of(store, derived_codec=Float16()) == run_of(store)
    assert run_of(store, KD(), derived_codec=PCA()).outputs_at(0) == caches[0]
    parts = methods[1:3]
    both, turned = (run_of(store, Combine(combine=some)) for some in (parts, parts[::-1]))
    assert both.outputs_at(0) == turned.outputs_at(0)
    assert caches[1].label == "dense, attention float16"
    assert both.outputs_at(0).label == "dense, attention float16, maps of stage2 float16"
    assert StageMaps(deepest=2, before_relu=True).label == "maps of the last 2 stages before ReLU"


def test_what_cannot_come_from_a_cache_is_refused_with_what_to_do(store):
    for wrong, words in (
        ({"method": AT(), "source": "cache"}, "or method.source to cache"),
        ({"method": Combine(combine=(AT(source="cache"), FitNet()))}, "all of them source: cache"),
    ):
        with pytest.raises(ValidationError, match=words):
            run_of(store, **wrong)
    with pytest.raises(ValidationError, match="as modes always and random do not"):
        SAKD(base=AT(source="cache"))
    with pytest.raises(ValidationError, match="leave source out"):
        SP(on="embedding", source="cache")
    small, large = (Shapes(10, 64, {"stage1": (8, side, side)}) for side in (8, 16))
    AT(source="cache").helpers(large, small)
    with pytest.raises(ConfigError, match=r"method\.source to live"):
        AT(source="cache").helpers(small, large)


def test_numbers_beyond_float16_are_refused_with_the_codec_that_holds_them():
    outputs = Outputs(derived={"stage1": torch.full((4, 2, 2, 2), 1e5)})
    for codec in (Float16(), Float32()):
        vectors = fitted([outputs], {"derived": codec}, None, 4)
        if codec == Float32():
            back = vectors.decode(vectors.encode(outputs), torch.arange(4), Outputs())
            assert torch.equal(back.derived["stage1"], outputs.derived["stage1"])
            continue
        with pytest.raises(ConfigError, match=r"1e\+05.*set run\.derived_codec to float32"):
            vectors.encode(outputs)


def test_a_live_run_computes_the_columns_of_a_method_that_reads_them(store):
    run = run_of(store, AT(source="cache"), source="live")
    assert not run.cached() and run.method.needs() == Signal.DERIVED
    prepare(store, run)
    source = teachers(store, run, CPU)(0)
    assert source is not None
    names = [*source(whole_view(store, run)).derived]
    assert names == ["stage1.attention", "stage2.attention", "stage3.attention"]
