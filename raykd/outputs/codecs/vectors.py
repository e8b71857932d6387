"""Codecs of vectors: embeddings, and the channels of maps at each of their places.

A codec is fitted to the teacher's outputs for some training images, and what it then declares
(extremes of channels, a basis) is kept beside the shards: `raykd.outputs.statistics`.

Shapes: n rows, T places (1 of an embedding), K channels, W numbers stored of a place, m vectors
that a codec is fitted to.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from raykd.core.errors import ConfigError
from raykd.core.record import Limits, Record
from raykd.core.registry import Registry

Fit = Mapping[str, Tensor]
_LEVELS = 255  # steps between the extremes of a channel
_Share = Annotated[float, Field(ge=0, le=1)]


class VectorCodec(Record):
    """One way to store vectors. A subclass is final.

    The error that counts is the share of the variance that is lost: the squared distance between
    vectors and what is read back of them, over their squared distance to their mean.
    """

    fitted: ClassVar[bool] = True  # False: nothing has to be known of the vectors before

    name: str
    """Name of the codec; a name alone takes every default."""
    tolerance: _Share
    """Largest share of the variance that the images may lose that the codec is fitted to; random
    rows may lose twice as much. A build that measures more is refused.
    """

    @property
    def label(self) -> str:
        """Name and parameters, as in "pca 64"."""
        return self.name

    def check(self, channels: int, field: str, count: int | None = None) -> None:
        """Raise `ConfigError` where vectors of so many channels cannot be stored so.

        `count` is the number of vectors that it is to be fitted to, once it is known.
        """

    def fit(self, vectors: Tensor, mean: Tensor, basis: Tensor) -> dict[str, Tensor]:
        """Float32 tensors that `encode` and `decode` need, from vectors float32 [m, K].

        `mean` is [K], and the columns of `basis` [K, K] are the eigenvectors of the vectors'
        covariance, those of the largest eigenvalues first.
        """
        return {}

    @abstractmethod
    def width(self, channels: int) -> int:
        """W of vectors of K channels."""

    @abstractmethod
    def bytes_per_place(self, channels: int) -> int:
        """Bytes of one place of a row."""

    @abstractmethod
    def numbers(self, vectors: Tensor, fit: Fit) -> Tensor:
        """The numbers float32 [n, W, T] that are kept of vectors [n, K, T], before rounding."""

    @abstractmethod
    def encode(self, numbers: Tensor, fit: Fit) -> Tensor:
        """The stored column [n, W T] of such numbers."""

    @abstractmethod
    def stored(self, column: Tensor, fit: Fit, places: int) -> Tensor:
        """The numbers float32 [n, W, T] that a column holds."""

    def restore(self, numbers: Tensor, fit: Fit) -> Tensor:
        """The vectors float32 [n, K, T] that such numbers stand for."""
        return numbers

    @abstractmethod
    def rounding(self, numbers: Tensor, fit: Fit) -> Tensor:
        """The largest difference that storage makes to numbers [n, W, T]; it broadcasts."""


class _Plain(VectorCodec):
    """Every number by itself, which needs no statistics. Abstract."""

    fitted: ClassVar[bool] = False

    def width(self, channels: int) -> int:
        """K."""
        return channels

    def numbers(self, vectors: Tensor, fit: Fit) -> Tensor:
        """The vectors."""
        return vectors

    def stored(self, column: Tensor, fit: Fit, places: int) -> Tensor:
        """Float32."""
        return column.float().unflatten(1, (-1, places))


class Float16(_Plain):
    """Every number as float16: 2 K bytes a place."""

    name: Literal["float16"] = "float16"
    tolerance: _Share = 1e-3

    def bytes_per_place(self, channels: int) -> int:
        """2 K."""
        return 2 * channels

    def encode(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Float16."""
        return numbers.to(torch.float16).flatten(1)

    def rounding(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Float16 has 11 bits; two forwards of one network differ by rounding."""
        largest = numbers.abs().amax(dim=(1, 2), keepdim=True)
        return 1e-3 * numbers.abs() + 1e-3 * largest + 1e-6


class Float32(_Plain):
    """Every number as it is: 4 K bytes a place, for numbers that float16 cannot hold."""

    name: Literal["float32"] = "float32"
    tolerance: _Share = 1e-6

    def bytes_per_place(self, channels: int) -> int:
        """4 K."""
        return 4 * channels

    def encode(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Float32."""
        return numbers.flatten(1)

    def rounding(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Two forwards of one network differ by rounding."""
        return 1e-3 * numbers.abs().amax(dim=(1, 2), keepdim=True) + 1e-6


class _Levels(VectorCodec):
    """One of 256 levels between the extremes that a channel had where it was fitted. Abstract.

    By channel, since those of transformers differ much: with one of 50 times the deviation, levels
    between the extremes of a row would lose 1.3 % of the variance of the others.
    """

    def width(self, channels: int) -> int:
        """K."""
        return channels

    def bytes_per_place(self, channels: int) -> int:
        """W."""
        return self.width(channels)

    def fit(self, vectors: Tensor, mean: Tensor, basis: Tensor) -> dict[str, Tensor]:
        """`low` and `step` [W] of the levels, and what a subclass adds."""
        fit = self.projection(mean, basis)
        numbers = self.projected(vectors[..., None], fit)[..., 0]
        low, high = numbers.amin(0), numbers.amax(0)
        return {**fit, "low": low, "step": (high - low) / _LEVELS}

    def numbers(self, vectors: Tensor, fit: Fit) -> Tensor:
        """Numbers between the extremes; those beyond are brought there."""
        low = fit["low"][:, None]
        high = low + _LEVELS * fit["step"][:, None]
        return torch.minimum(torch.maximum(self.projected(vectors, fit), low), high)

    def encode(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Uint8: the number of steps above the lowest."""
        step = fit["step"].clamp_min(torch.finfo().tiny)[:, None]
        levels = ((numbers - fit["low"][:, None]) / step).round().clamp(0, _LEVELS)
        return levels.to(torch.uint8).flatten(1)

    def stored(self, column: Tensor, fit: Fit, places: int) -> Tensor:
        """The levels' numbers."""
        levels = column.float().unflatten(1, (-1, places))
        return levels.mul_(fit["step"][:, None]).add_(fit["low"][:, None])

    def rounding(self, numbers: Tensor, fit: Fit) -> Tensor:
        """Half a step, and what two forwards of one network differ by."""
        largest = numbers.abs().amax(dim=(1, 2), keepdim=True)
        return 0.5 * fit["step"][:, None] + 1e-3 * largest + 1e-6

    def projection(self, mean: Tensor, basis: Tensor) -> dict[str, Tensor]:
        """Tensors that `projected` and `restore` need."""
        return {}

    def projected(self, vectors: Tensor, fit: Fit) -> Tensor:
        """The numbers [n, W, T] of vectors [n, K, T] without bounds."""
        return vectors


class Int8Channels(_Levels):
    """Every channel as one of 256 levels between its extremes: K bytes a place."""

    name: Literal["int8"] = "int8"
    tolerance: _Share = 0.02


class PCA(_Levels):
    """The coordinates along the first principal axes, each as one of 256 levels: r bytes a place.

    What is read back is the vector that they stand for, with the mean along all other axes.
    """

    name: Literal["pca"] = "pca"
    rank: int = Field(default=64, ge=1, le=Limits.WIDTH)
    """Number r of axes that are kept; at most as many as there are channels."""
    tolerance: _Share = 0.5

    @property
    def label(self) -> str:
        """Name and rank."""
        return f"{self.name} {self.rank}"

    def check(self, channels: int, field: str, count: int | None = None) -> None:
        """Refuses more axes than channels, and than there are directions among the vectors."""
        if self.rank > channels:
            raise ConfigError(
                f"run.{field}.rank: {self.rank} axes of vectors of {channels} channels; choose "
                f"{channels} or fewer"
            )
        if count is not None and self.rank >= count:
            raise ConfigError(
                f"run.{field}.rank: {self.rank} axes of {count} vectors, which have {count - 1} "
                "directions from their mean, so that other images would lose what these do not; "
                "keep fewer axes, choose int8 or float16, or give more images"
            )

    def width(self, channels: int) -> int:
        """Number of axes r."""
        return self.rank

    def projection(self, mean: Tensor, basis: Tensor) -> dict[str, Tensor]:
        """The mean [K] and the first axes [K, r]."""
        first = basis[:, : self.rank].clone(memory_format=torch.contiguous_format)
        return {"mean": mean, "basis": first}  # of its own, also where these are all axes

    def projected(self, vectors: Tensor, fit: Fit) -> Tensor:
        """Coordinates of the vectors less their mean."""
        return fit["basis"].T @ (vectors - fit["mean"][:, None])

    def restore(self, numbers: Tensor, fit: Fit) -> Tensor:
        """The mean, and along each axis its coordinate."""
        return fit["basis"] @ numbers + fit["mean"][:, None]


VECTOR_CODECS: Registry[type[VectorCodec]] = Registry("vector codec")
VECTOR_CODECS.add("float16", Float16)
VECTOR_CODECS.add("float32", Float32)
VECTOR_CODECS.add("int8", Int8Channels)
VECTOR_CODECS.add("pca", PCA)


def _shortest(codec: VectorCodec | None) -> VectorCodec | None:
    """The codec; None, which stands for it, in place of the default one."""
    return None if codec == Float16() else codec


# Of a recipe: one of the codecs, or None for float16, so that what is not named adds nothing to a
# fingerprint. Pydantic reads this union; pyright cannot see its members, and need not.
_Members = Annotated[Union[tuple(VECTOR_CODECS.values())], Field(discriminator="name")]  # noqa: UP007
if TYPE_CHECKING:
    AnyVectorCodec = VectorCodec | None
else:
    AnyVectorCodec = Annotated[_Members | None, AfterValidator(_shortest)]
