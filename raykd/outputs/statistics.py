"""Statistics of a teacher's embeddings, maps and derived columns, by which codecs store them.

They are computed once for a cache, from the outputs for some training images, and kept in
`statistics.safetensors` in its folder. Its checksum is in `statistics.json` beside it, and in every
shard that was written by it.

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
from raykd.core.types import MAP_SUFFIX, Outputs, Signal, by_depth
from raykd.methods.feature_maps import pooled_to_grid
from raykd.outputs.codecs.base import check_finite, check_stored
from raykd.outputs.codecs.vectors import AnyVectorCodec, Float16, VectorCodec
from raykd.storage import arrow
from raykd.storage.store import read_json

STATISTICS = "statistics.safetensors"
NOTE = "statistics"  # key of a shard's notes: the checksum of the statistics that encoded it
IMAGES = 1024  # at least, as far as there are so many
VECTORS = 10  # at least, times K
_MOST = 1 << 16  # vectors at most: every k-th place of a map
OF_VECTORS = (
    (Signal.EMBEDDING, "embedding"),
    (Signal.MAP, "map"),
    (Signal.DERIVED, "derived"),
)
_FIELDS = {
    "embedding": "embedding",
    "map": "maps",
    "derived": "derived",
}  # fields of a cache's recipe
_DERIVED = "derived."  # beginning of the columns that are a method's functions of the outputs
_LEVELS = "embedding.levels"  # column of embeddings that are not float16
_CODEC: TypeAdapter[AnyVectorCodec] = TypeAdapter(AnyVectorCodec)


def fitted_codecs(recipe: Mapping[str, Any]) -> dict[str, VectorCodec]:
    """Codecs of a cache's recipe, as plain data, that need statistics, by the kind of output.

    The kinds are "embedding", "map" and "derived". Embeddings as float16 are not among them; the
    others always are, for their shape.
    """
    codecs: dict[str, VectorCodec] = {}
    for kind, stored in _FIELDS.items():
        codec = _CODEC.validate_python(recipe.get(f"{kind}_codec")) or Float16()
        if recipe.get(stored) and (kind != "embedding" or not isinstance(codec, Float16)):
            codecs[kind] = codec
    return codecs


def images_for(
    codecs: Mapping[str, VectorCodec],
    places: int,
    channels: int,
    derived: Iterable[tuple[int, ...]] = (),
) -> int:
    """Number of images whose outputs a cache's statistics are of.

    `derived`: sizes of the derived columns, K, or K, H and W.
    """
    needed = [
        -(-VECTORS * channels // (places if kind == "map" else 1))
        for kind, codec in codecs.items()
        if codec.fitted and kind != "derived"
    ]
    if "derived" in codecs and codecs["derived"].fitted:
        needed += [-(-VECTORS * width // prod(size)) for width, *size in derived]
    return max([IMAGES, *needed]) if needed else 1


@dataclass(frozen=True)
class Vectors:
    """The codecs of a cache's embeddings, maps and derived columns, with what they were fitted to.

    `codecs` has one for each kind. `fits` has for "embedding", "map" and each derived column
    ("derived.stage2.attention"): `mean` float64 [K], `eigenvalues` float64 [K] falling, `vectors`
    float32 [K, K] (columns), `lost` (share of the variance, float64), `shape` int64 (K, or K, H,
    W), and the codec's own tensors. Of what needs no fit there is the shape alone.
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
        """Sizes of the outputs beyond their channels, by key of `fits`: none, or H and W."""
        return {key: fit["shape"][1:].tolist() for key, fit in self.fits.items()}

    def lost(self) -> dict[str, float]:
        """Share of the variance that was lost where the codecs were fitted, by key of `fits`."""
        return {k: float(fit["lost"]) for k, fit in self.fits.items() if "lost" in fit}

    def encode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Columns of one batch on the CPU. Raises `ValueError` where an output is not finite."""
        columns: dict[str, Tensor] = {}
        for key in self._keys:
            codec, vectors = self.codecs[_kind(key)], vectors_of(outputs, key, self.grid)
            check_finite(key, vectors)
            fit = self._fit(key, vectors.device)
            column = codec.encode(codec.numbers(vectors, fit), fit).cpu()
            check_stored(key, _kind(key), vectors, column)
            name = outputs.map_stage + MAP_SUFFIX if key == "map" else key
            columns[_LEVELS if key == "embedding" else name] = column
        return columns

    def decode(self, columns: Mapping[str, Tensor], rows: Tensor, outputs: Outputs) -> Outputs:
        """`outputs` with embeddings, maps and derived columns at `rows` (int64 [B]), float32."""
        derived: dict[str, Tensor] = {}
        for name, column in columns.items():
            if not is_fitted(name):
                continue
            key = _key(name)
            values, size = self._restored(key, column.index_select(0, rows)), self.sizes[key]
            values = values.unflatten(2, size) if size else values.squeeze(2)
            if key == "embedding":
                outputs = outputs.replace(embedding=values)
            elif key == "map":
                outputs = outputs.replace(features={**outputs.features, name: values})
            else:
                derived[name.removeprefix(_DERIVED)] = values
        return outputs.replace(derived=derived) if derived else outputs

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
            kind, key = kind_of(name), _key(name)
            codec, vectors = self.codecs[kind], vectors_of(outputs, key, self.grid)
            fit = self._fit(key, vectors.device)
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

    @cached_property
    def _keys(self) -> list[str]:
        """The keys of `fits`, in the order of the columns."""
        kinds = [*self.codecs]
        return sorted(self.fits, key=lambda key: (kinds.index(_kind(key)), by_depth(key)))

    def _restored(self, key: str, column: Tensor) -> Tensor:
        fit, codec = self._fit(key, column.device), self.codecs[_kind(key)]
        return codec.restore(codec.stored(column, fit, prod(self.sizes[key])), fit)

    def _fit(self, key: str, device: torch.device) -> dict[str, Tensor]:
        """Tensors of a codec on a device; the mean in float32."""
        fit = _on(device, self.fits[key])
        return fit | ({"mean": fit["mean"].float()} if "mean" in fit else {})


def _on(device: torch.device, fit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a codec on a device. The shape, which is read, stays on the CPU."""
    return {name: value if name == "shape" else value.to(device) for name, value in fit.items()}


def kind_of(column: str) -> str:
    """Kind of output that a column is of: "derived", "map", "embedding" or "logits"."""
    if column.startswith(_DERIVED):
        return "derived"
    if column.endswith(MAP_SUFFIX):
        return "map"
    return "embedding" if column in ("embedding", _LEVELS) else "logits"


def is_fitted(column: str) -> bool:
    """True for a column that `Vectors` decodes."""
    return column == _LEVELS or kind_of(column) in ("map", "derived")


def _key(column: str) -> str:
    """Key of `Vectors.fits` for a column that is fitted: its kind, or a derived one's name."""
    return column if column.startswith(_DERIVED) else kind_of(column)


def _kind(key: str) -> str:
    """Kind of output of a key of `Vectors.fits`."""
    return "derived" if key.startswith(_DERIVED) else key


def vectors_of(outputs: Outputs, key: str, grid: int | None) -> Tensor:
    """The vectors float32 [B, K, T] of a batch: T is H W of maps, 1 of embeddings and the like."""
    if key.startswith(_DERIVED):
        column = outputs.derived[key.removeprefix(_DERIVED)].float()
        return column[..., None] if column.dim() == 2 else column.flatten(2)
    if key == "embedding":
        return outputs.embedding.float()[..., None]
    return pooled_to_grid(outputs.map.float(), grid).flatten(2)


def lost_share(vectors: Tensor, restored: Tensor, mean: Tensor) -> float:
    """Share of the variance about `mean` [K] that is lost of vectors [n, K, T].

    Of vectors that do not vary, rounding is none: their variance counts as 1e-8 of their square.
    """
    lost = (vectors - restored).double().square().sum()
    whole = (vectors - mean[:, None]).double().square().sum()
    least = (1e-8 * vectors.double().square().sum()).clamp_min(torch.finfo(torch.float64).tiny)
    return float(lost / torch.maximum(whole, least))


def fitted(
    answers: Iterable[Outputs], codecs: Mapping[str, VectorCodec], grid: int | None, images: int
) -> Vectors:
    """Codecs fitted to the outputs for some images, without a checksum.

    Raises `ConfigError` where one of them loses more than it may.
    """
    kept: dict[str, list[Tensor]] = {}
    shapes: dict[str, Tensor] = {}
    for outputs in answers:
        for key in _keys_of(outputs, codecs):
            vectors = vectors_of(outputs, key, grid).cpu()
            if key not in shapes:
                shape = vectors.shape[1:2]
                if key == "map":
                    shape = pooled_to_grid(outputs.map[:1], grid).shape[1:]
                elif key.startswith(_DERIVED):
                    shape = outputs.derived[key.removeprefix(_DERIVED)].shape[1:]
                shapes[key] = torch.tensor([*shape])
            stride = max(1, -(-images * vectors.shape[2] // _MOST))
            kept.setdefault(key, []).append(vectors[:, :, ::stride].mT.flatten(0, 1))
    fits: dict[str, dict[str, Tensor]] = {}
    for key, shape in shapes.items():
        codec = codecs[_kind(key)]
        fits[key] = {"shape": shape}
        if codec.fitted:
            fits[key] |= _fitted(codec, torch.cat(kept[key]), f"{_kind(key)}_codec")
    return Vectors(codecs, fits, grid, "")


def _keys_of(outputs: Outputs, codecs: Mapping[str, VectorCodec]) -> list[str]:
    """Keys of `Vectors.fits` for some outputs."""
    kinds = [kind for kind in codecs if kind != "derived"]
    return kinds + ([_DERIVED + name for name in outputs.derived] if "derived" in codecs else [])


def _fitted(codec: VectorCodec, vectors: Tensor, field: str) -> dict[str, Tensor]:
    """The statistics of vectors [m, K], and what a codec is fitted to."""
    codec.check(vectors.shape[1], field, len(vectors))
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


def seal_of(path: Path) -> Path:
    """The file with the checksum of a cache's statistics; earlier versions wrote none."""
    return path.with_suffix(".json")


def read_vectors(path: Path, codecs: Mapping[str, VectorCodec], grid: int | None) -> Vectors:
    """The codecs of a cache with the statistics in its file.

    Raises `CacheCorrupt` where the file is missing, not of this form, or not as it was written.
    """
    advice = "remove the folder, and `raykd precompute` makes the cache again"
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        fits: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, part = name.partition("/")
            fits.setdefault(kind, {})[part] = value
        if {_kind(key) for key in fits} != codecs.keys():
            raise ValueError(f"it is of {', '.join(fits)}")
        for key, fit in fits.items():
            if lacking := _parts(codecs[_kind(key)]) - fit.keys():
                raise ValueError(f"it lacks {key}/{min(lacking)}")
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: is missing; {advice}") from None
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CacheCorrupt(f"{path}: not statistics of this cache ({error}); {advice}") from error
    checksum, seal = arrow.checksum(data), seal_of(path)
    spare = "remove this file and go on: every shard has the checksum that it holds, too"
    if seal.is_file() and read_json(seal, dict[str, str], advice=spare).get("checksum") != checksum:
        raise CacheCorrupt(f"{path}: was altered, its checksum does not match; {advice}")
    return Vectors(codecs, fits, grid, checksum)
