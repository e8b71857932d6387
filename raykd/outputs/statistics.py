"""Statistics of a teacher's embeddings and maps, by which a cache's codecs store them.

They are computed once for a cache, from the outputs for some training images, and kept in
`statistics.safetensors` in its folder; every shard carries the checksum of the file that it was
written by.

Shapes: B batch, n rows, K channels, H, W pixels, T places, m vectors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.core.types import MAP_SUFFIX, Outputs
from raykd.methods.feature_maps import pooled_to_grid
from raykd.outputs.codecs.vectors import AnyVectorCodec, Float16, VectorCodec
from raykd.storage import arrow

STATISTICS = "statistics.safetensors"
NOTE = "statistics"  # key of a shard's notes: the checksum of the statistics that encoded it
IMAGES = 1024  # at least, as far as there are so many
VECTORS = 10  # at least, times K
_MOST = 1 << 16  # vectors at most: every k-th place of a map
_LEVELS = "embedding.levels"  # column of embeddings that are not float16
_CODEC: TypeAdapter[AnyVectorCodec] = TypeAdapter(AnyVectorCodec)


def fitted_codecs(recipe: Mapping[str, Any]) -> dict[str, VectorCodec]:
    """Codecs of a cache's recipe, as plain data, that need statistics: of "embedding" and "map".

    Embeddings as float16 are not among them; maps always are, for their shape.
    """
    codecs: dict[str, VectorCodec] = {}
    for kind, stored in (("embedding", "embedding"), ("map", "maps")):
        codec = _CODEC.validate_python(recipe.get(f"{kind}_codec")) or Float16()
        if recipe.get(stored) and (kind == "map" or not isinstance(codec, Float16)):
            codecs[kind] = codec
    return codecs


def images_for(codecs: Mapping[str, VectorCodec], places: int, channels: int) -> int:
    """Number of images whose outputs a cache's statistics are of."""
    needed = [
        -(-VECTORS * channels // (places if kind == "map" else 1))
        for kind, codec in codecs.items()
        if codec.fitted
    ]
    return max([IMAGES, *needed]) if needed else 1


@dataclass(frozen=True)
class Vectors:
    """The codecs of a cache's embeddings and maps, with what they were fitted to.

    `fits` has for each: `mean` float64 [K], `eigenvalues` float64 [K] falling, `vectors` float32
    [K, K] (columns), `lost` (share of the variance, float64), `shape` int64 (K, or K, H, W), and
    the codec's own tensors. Of what needs no fit there is the shape alone.
    """

    codecs: Mapping[str, VectorCodec]
    fits: Mapping[str, Mapping[str, Tensor]]
    grid: int | None
    checksum: str

    def to(self, device: torch.device) -> "Vectors":
        """The same on a device."""
        if device.type == "cpu":
            return self
        fits = {kind: _on(device, fit) for kind, fit in self.fits.items()}
        return Vectors(self.codecs, fits, self.grid, self.checksum)

    @cached_property
    def sizes(self) -> dict[str, list[int]]:
        """Sizes of the outputs beyond their channels, by kind: none, or H and W."""
        return {kind: fit["shape"][1:].tolist() for kind, fit in self.fits.items()}

    def lost(self) -> dict[str, float]:
        """Share of the variance that was lost where the codecs were fitted, by kind."""
        return {k: float(fit["lost"]) for k, fit in self.fits.items() if "lost" in fit}

    def encode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Columns of one batch on the CPU. Raises `ValueError` where an output is not finite."""
        columns: dict[str, Tensor] = {}
        for kind, codec in self.codecs.items():
            vectors = vectors_of(outputs, kind, self.grid)
            if not bool(vectors.isfinite().all()):
                row = int((~vectors.isfinite()).flatten(1).any(1).nonzero()[0, 0])
                raise ValueError(f"the teacher's {kind} of row {row} of this batch are not finite")
            name = _LEVELS if kind == "embedding" else outputs.map_stage + MAP_SUFFIX
            fit = self._fit(kind, vectors.device)
            columns[name] = codec.encode(codec.numbers(vectors, fit), fit).cpu()
        return columns

    def decode(self, columns: Mapping[str, Tensor], rows: Tensor, outputs: Outputs) -> Outputs:
        """`outputs` with the embedding and the map at `rows` (int64 [B]), float32."""
        for name, column in columns.items():
            if not is_fitted(name):
                continue
            kind = kind_of(name)
            values = self._restored(kind, column.index_select(0, rows))
            if kind == "embedding":
                outputs = outputs.replace(embedding=values.squeeze(2))
            else:
                maps = {name: values.unflatten(2, self.sizes[kind])}
                outputs = outputs.replace(features={**outputs.features, **maps})
        return outputs

    def compared(
        self, outputs: Outputs, columns: Mapping[str, Tensor], rows: Tensor
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, float]]:
        """For each column: expected numbers [n, W T], stored ones, tolerances, and the share lost.

        Raises `ConfigError` where more than twice the tolerance is lost: the images that the codec
        was fitted to are not like these.

        `outputs` are the live teacher's for the samples at `rows` (int64 [n]).
        """
        for name, column in columns.items():
            if not is_fitted(name):
                continue
            kind = kind_of(name)
            codec, vectors = self.codecs[kind], vectors_of(outputs, kind, self.grid)
            fit = self._fit(kind, vectors.device)
            column = column.index_select(0, rows)
            expected = codec.numbers(vectors, fit)
            stored = codec.stored(column, fit, vectors.shape[2])
            close = codec.rounding(expected, fit).expand_as(expected)
            mean = fit.get("mean", vectors.mean(dim=(0, 2)))
            share = lost_share(vectors, codec.restore(stored, fit), mean)
            if share > 2 * codec.tolerance:
                what = "the teacher's outputs for rows of this cache"
                raise ConfigError(_too_much(codec, f"{kind}_codec", share, what))
            yield expected.flatten(1), stored.flatten(1), close.flatten(1), share

    def _restored(self, kind: str, column: Tensor) -> Tensor:
        fit, codec = self._fit(kind, column.device), self.codecs[kind]
        return codec.restore(codec.stored(column, fit, prod(self.sizes[kind])), fit)

    def _fit(self, kind: str, device: torch.device) -> dict[str, Tensor]:
        """Tensors of a codec on a device; the mean in float32."""
        fit = _on(device, self.fits[kind])
        return fit | ({"mean": fit["mean"].float()} if "mean" in fit else {})


def _on(device: torch.device, fit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a codec on a device. The shape, which is read, stays on the CPU."""
    return {name: value if name == "shape" else value.to(device) for name, value in fit.items()}


def kind_of(column: str) -> str:
    """Kind of output that a column is of: "map", "embedding" or "logits"."""
    if column.endswith(MAP_SUFFIX):
        return "map"
    return "embedding" if column in ("embedding", _LEVELS) else "logits"


def is_fitted(column: str) -> bool:
    """True for a column that `Vectors` decodes."""
    return column == _LEVELS or kind_of(column) == "map"


def vectors_of(outputs: Outputs, kind: str, grid: int | None) -> Tensor:
    """The vectors float32 [B, K, T] of a batch: T is 1 of embeddings, and H W of maps."""
    if kind == "embedding":
        return outputs.embedding.float()[..., None]
    return pooled_to_grid(outputs.map.float(), grid).flatten(2)


def lost_share(vectors: Tensor, restored: Tensor, mean: Tensor) -> float:
    """Share of the variance about `mean` [K] that is lost of vectors [n, K, T]."""
    lost = (vectors - restored).double().square().sum()
    whole = (vectors - mean[:, None]).double().square().sum()
    return float(lost / whole.clamp_min(torch.finfo(torch.float64).tiny))


def fitted(
    answers: Iterable[Outputs], codecs: Mapping[str, VectorCodec], grid: int | None, images: int
) -> Vectors:
    """Codecs fitted to the outputs for some images, without a checksum.

    Raises `ConfigError` where one of them loses more than it may.
    """
    kept: dict[str, list[Tensor]] = {kind: [] for kind in codecs}
    shapes: dict[str, Tensor] = {}
    for outputs in answers:
        for kind in codecs:
            vectors = vectors_of(outputs, kind, grid).cpu()
            if kind not in shapes:
                shape = vectors.shape[1:2]
                if kind == "map":
                    shape = pooled_to_grid(outputs.map[:1], grid).shape[1:]
                shapes[kind] = torch.tensor([*shape])
            stride = max(1, -(-images * vectors.shape[2] // _MOST))
            kept[kind].append(vectors[:, :, ::stride].mT.flatten(0, 1))
    fits: dict[str, dict[str, Tensor]] = {}
    for kind, codec in codecs.items():
        fits[kind] = {"shape": shapes[kind]}
        if codec.fitted:
            fits[kind] |= _fitted(codec, torch.cat(kept[kind]), f"{kind}_codec")
    return Vectors(codecs, fits, grid, "")


def _fitted(codec: VectorCodec, vectors: Tensor, field: str) -> dict[str, Tensor]:
    """The statistics of vectors [m, K], and what a codec is fitted to."""
    codec.check(vectors.shape[1], field)
    if not bool(vectors.isfinite().all()):
        raise ConfigError(f"run.{field}: the teacher's outputs are not all finite; use float16")
    mean = vectors.double().mean(0)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in vectors.split(1 << 13):
        centred = block.double() - mean
        covariance += centred.T @ centred
    values, axes = torch.linalg.eigh(covariance / len(vectors))
    values, axes = values.flip(0).clamp_min(0), axes.flip(1).float()
    fit = codec.fit(vectors, mean.float(), axes)
    rows = vectors[..., None]
    stored = codec.stored(codec.encode(codec.numbers(rows, fit), fit), fit, 1)
    lost = lost_share(rows, codec.restore(stored, fit), mean.float())
    if lost > codec.tolerance:
        text = _too_much(codec, field, lost, "the teacher's outputs")
        if codec.name == "pca":
            beyond = values.flip(0).cumsum(0).flip(0) / values.sum()
            enough = int((beyond > codec.tolerance / 2).sum())
            text += f" (the first {enough} of {len(values)} leave out half of that tolerance)"
        raise ConfigError(text)
    return {
        **fit,
        "mean": mean,
        "eigenvalues": values,
        "vectors": axes,
        "lost": torch.tensor(lost, dtype=torch.float64),
    }


def _parts(codec: VectorCodec) -> set[str]:
    """The names of the tensors that a codec has in the file."""
    if not codec.fitted:
        return {"shape"}
    own = codec.fit(torch.zeros(1, 1), torch.zeros(1), torch.ones(1, 1))
    return {"shape", "mean", "eigenvalues", "vectors", "lost", *own}


def _too_much(codec: VectorCodec, field: str, share: float, what: str) -> str:
    """A sentence on a codec that loses more than it may, and on what to do."""
    others = {"pca": ", choose int8 or float16, or keep more axes", "int8": " or choose float16"}
    return (
        f"run.{field}: {codec.label} loses {100 * share:.3g} % of the variance of {what}, and its "
        f"tolerance is {100 * codec.tolerance:.3g} %; raise tolerance{others.get(codec.name, '')}"
    )


def packed(vectors: Vectors) -> bytes:
    """The content of the file."""
    tensors = {f"{k}/{name}": v for k, fit in vectors.fits.items() for name, v in fit.items()}
    return safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})


def read_vectors(path: Path, codecs: Mapping[str, VectorCodec], grid: int | None) -> Vectors:
    """The codecs of a cache with the statistics in its file.

    Raises `CacheCorrupt` where the file is missing or not of this form.
    """
    advice = "remove the folder, and `raykd precompute` makes the cache again"
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        fits: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, part = name.partition("/")
            fits.setdefault(kind, {})[part] = value
        if fits.keys() != codecs.keys():
            raise ValueError(f"it is of {', '.join(fits)}")
        for kind, codec in codecs.items():
            if lacking := _parts(codec) - fits[kind].keys():
                raise ValueError(f"it lacks {kind}/{min(lacking)}")
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: is missing; {advice}") from None
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CacheCorrupt(f"{path}: not statistics of this cache ({error}); {advice}") from error
    return Vectors(codecs, fits, grid, arrow.checksum(data))
