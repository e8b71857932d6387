"""Codecs of embeddings and maps: what is read back, what is lost, and what is refused."""

import dataclasses

import pytest
import torch

from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.core.types import Outputs
from raykd.outputs.codecs import PCA, VECTOR_CODECS, Float16, Float32, Int8Channels
from raykd.outputs.statistics import fitted, fitted_codecs, lost_share, packed, read_vectors
from tests.each import each

BYTES = {"float16": 2 * 24, "float32": 4 * 24, "int8": 24, "pca": 8}


def answers(count=640, channels=24, side=4, seed=0, factor=50):
    """Maps of a few dominant directions, one channel of a large variance, and embeddings."""
    torch.manual_seed(seed)
    mixing = torch.randn(8, channels) * torch.linspace(3, 0.3, 8)[:, None]
    vectors = torch.randn(count, side * side, 8) @ mixing + 0.05 * torch.randn(1, 1, channels)
    vectors[..., 0] *= factor
    maps = vectors.mT.unflatten(2, (side, side)) + 1
    return Outputs(features={"stage4.map": maps}, embedding=maps.mean((2, 3)))


def made(codec, kind="map", grid=None, outputs=None):
    """A codec that was fitted, as it is read from its file's content."""
    outputs = answers() if outputs is None else outputs
    return fitted([outputs], {kind: codec}, grid, len(outputs.embedding))


def read_back(vectors, outputs):
    columns = vectors.encode(outputs)
    rows = torch.arange(len(outputs.embedding))
    return columns, vectors.decode(columns, rows, Outputs())


CODECS = [Float16(), Float32(), Int8Channels(), PCA(rank=8)]


@each("codec", CODECS, ids=lambda codec: codec.label)
@each("kind", ["embedding", "map"])
def test_what_is_read_back_is_within_what_was_declared(codec, kind):
    vectors, fresh = made(codec, kind), answers()
    columns, outputs = read_back(vectors, fresh)
    ((_, column),) = columns.items()
    places = 16 if kind == "map" else 1
    assert column[0].nbytes == places * codec.bytes_per_place(24) == places * BYTES[codec.name]
    live, found = (getattr(x, kind) for x in (fresh, outputs))
    assert found.shape == live.shape and found.dtype == torch.float32
    lost = lost_share(
        live.flatten(2) if kind == "map" else live[..., None],
        found.flatten(2) if kind == "map" else found[..., None],
        live.mean((0, 2, 3) if kind == "map" else 0),
    )
    assert lost <= codec.tolerance
    if codec.fitted:
        assert lost == pytest.approx(vectors.lost()[kind], rel=1e-2)
    for expected, stored, close, _ in vectors.compared(
        fresh, columns, torch.arange(len(fresh.embedding))
    ):
        assert bool(((expected - stored).abs() <= close).all())


def test_channels_of_other_variances_do_not_cost_each_other():
    outputs = answers()
    _, read = read_back(made(Int8Channels()), outputs)
    error = (read.map - outputs.map).square().mean((0, 2, 3)) / outputs.map.var((0, 2, 3))
    assert float(error.max()) < 1e-3  # by row, that of all but the first would be 1e-2


def test_all_axes_lose_no_more_than_their_levels():
    vectors = made(PCA(rank=24, tolerance=0.01))
    assert vectors.lost()["map"] < 2e-3
    assert packed(vectors)  # no two tensors of a file are one


def test_maps_are_pooled_to_the_grid():
    outputs = answers()
    _, read = read_back(made(Float16(), grid=2), outputs)
    pooled = torch.nn.functional.avg_pool2d(outputs.map, 2)
    torch.testing.assert_close(read.map, pooled, rtol=1e-3, atol=1e-3)


def test_values_beyond_the_extremes_are_clipped():
    outputs = answers()
    vectors = made(Int8Channels())
    _, read = read_back(vectors, outputs.replace(features={"stage4.map": 100 * outputs.map}))
    assert float(read.map.amax()) <= float(outputs.map.amax()) + 1e-3


def test_a_codec_that_loses_more_than_its_tolerance_is_refused():
    with pytest.raises(ConfigError, match=r"map_codec: pca 2 loses .*its tolerance is 1 %"):
        made(PCA(rank=2, tolerance=0.01), outputs=answers(factor=1))
    with pytest.raises(ConfigError, match="32 axes of vectors of 24 channels"):
        made(PCA(rank=32))
    made(PCA(rank=8), "embedding", outputs=answers(9))
    with pytest.raises(ConfigError, match="9 axes of 9 vectors, which have 8 directions"):
        made(PCA(rank=9), "embedding", outputs=answers(9))


def test_statistics_are_read_as_they_were_written(tmp_path):
    vectors, path = made(PCA(rank=8)), tmp_path / "statistics.safetensors"
    path.write_bytes(packed(vectors))
    codecs = fitted_codecs({"maps": True, "map_codec": PCA(rank=8).plain()})
    read = read_vectors(path, codecs, None)
    assert read.codecs == vectors.codecs and read.checksum
    (fit,), (other,) = read.fits.values(), vectors.fits.values()
    assert fit.keys() == other.keys()
    assert all(torch.equal(fit[name], other[name]) for name in fit)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheCorrupt, match="not statistics of this cache"):
        read_vectors(path, codecs, None)
    fits = {"map": {name: fit[name] for name in fit if name != "step"}}
    path.write_bytes(packed(dataclasses.replace(vectors, fits=fits)))
    with pytest.raises(CacheCorrupt, match="it lacks map/step"):
        read_vectors(path, codecs, None)
    with pytest.raises(CacheCorrupt, match="is missing"):
        read_vectors(tmp_path / "none", codecs, None)


def test_every_codec_is_tried():
    assert {type(codec) for codec in CODECS} == {*VECTOR_CODECS.values()}


def test_rounding_of_outputs_that_do_not_vary_is_no_loss():
    ones = torch.ones(4, 1, 1)
    assert lost_share(ones, ones * (1 - 6e-8), ones[0, :, 0]) < 1e-6
