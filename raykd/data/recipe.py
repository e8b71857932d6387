"""The images of a recipe: as a user names them, and as reading completes them.

Plain records, which load no decoder; `dataset.py` reads what they name.

Shapes: H, W pixels.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raykd.core.errors import ConfigError
from raykd.core.record import Limits, Record
from raykd.data.sources import SOURCES
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.crop import Interpolation

Split = Literal["train", "test", "validation"]
Labels = Literal["classes", "none"]
_Side = Annotated[int, Field(ge=1, le=Limits.ROWS)]
_Classes = Annotated[int, Field(ge=0, le=Limits.WIDTH)]  # 0: images without labels
_Size = tuple[_Side, _Side]  # (H, W)
_Mean = Annotated[float, Field(ge=0, le=1)]
_Std = Annotated[float, Field(gt=0, le=10)]


class Stream(Record):
    """Images decoded while training, each to a square: for more of them than memory holds.

    Training views show what `augment.crop` says; without it, and where a network is tested, the
    shorter side is brought to `resize` pixels and the centre is cut out, as is usual for ImageNet.
    A teacher may have another `size`, `resize` and `interpolation`: it sees the same part of the
    picture.
    The default of `resize` keeps the usual proportion, 256 to a `size` of 224.
    """

    size: int = Field(default=224, ge=1, le=Limits.PIXELS)
    """Side in pixels of the square that a network sees."""
    resize: int = Field(default=256, ge=1, le=Limits.PIXELS)
    """Shorter side in pixels before the centre is cut out; by default in proportion to `size`."""
    draft: bool = False
    """Decode JPEG files at a half to an eighth of their size where that suffices: faster, with
    other pixels.
    """
    interpolation: Interpolation = "bilinear"
    """Interpolation of that resizing, with antialiasing."""

    @model_validator(mode="before")
    @classmethod
    def _in_proportion(cls, value: Any) -> Any:
        """The values with a `resize`, which follows the size by default."""
        size = value.get("size") if isinstance(value, dict) else None
        if type(size) is int and size >= 1 and "resize" not in value:
            return value | {"resize": round(size * 256 / 224)}
        return value

    @model_validator(mode="after")
    def _check(self) -> "Stream":
        if self.resize < self.size:
            raise ValueError(
                f"resize {self.resize} leaves no centre of {self.size} pixels; use {self.size} or "
                "more"
            )
        return self


class Data(Record):
    """Images and rows of them as a user names them, and how they are augmented and normalised.

    With `labels: none`, class folders, label columns and class files are neither needed nor read:
    nothing depends on them. `digest`, `classes` and `size` are expectations, which reading checks
    if they are set; `mean` and `std` replace those of the dataset.
    """

    name: str
    """Name of the dataset, or of the kind of source, by `raykd show datasets`."""
    labels: Labels = "classes"
    """none: images alone, whose class folders or label columns are not read."""
    resize: int | None = Field(default=None, ge=1, le=Limits.PIXELS)
    """Shorter side in pixels, before a centre crop, of images in memory; null: as they are."""
    stream: Stream | None = None
    """Decode images while training; null: once, into memory."""
    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Share of the images that is the test split, where the dataset has none."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training images that is held out for validation; null: none."""
    limit: int | None = Field(default=None, ge=1, le=Limits.ROWS)
    """Number of images to train on, classes in proportion; null: all."""
    augment: Augment = Augment()
    """Random changes of the training images."""
    seed: int = Field(default=0, ge=0, le=Limits.SEED)
    """Seed of holdout, validation, limit and views; not of the order of samples."""
    view_seed: int | None = Field(default=None, ge=0, le=Limits.SEED)
    """Seed of the views alone; null: `seed`."""
    digest: str = ""
    """Hash of labels, encoded images and class names that reading must give; empty: not checked."""
    classes: _Classes | None = None
    """Number of classes that reading must give; null: not checked."""
    size: _Size | None = None
    """[height, width] in pixels that reading must give; null: not checked."""
    mean: tuple[_Mean, _Mean, _Mean] | None = None
    """Mean of each channel, of pixels in 0 to 1, for normalisation; null: the dataset's."""
    std: tuple[_Std, _Std, _Std] | None = None
    """Standard deviation of each channel, of pixels in 0 to 1; null: the dataset's."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        SOURCES[name]
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream is not None and self.resize is not None:
            raise ValueError("resize is of images in memory; leave it out, or set stream.resize")
        if self.classes is not None and (self.classes == 0) != (self.labels == "none"):
            raise ValueError(
                f"labels: {self.labels} and classes: {self.classes} exclude each other; images "
                "with labels have a class or more, images without have none; leave classes out"
            )
        return self

    def origins(self) -> Iterator[str]:
        """The digest of the plugin that reads them; an empty text for raykd's own readers."""
        yield SOURCES.origin(self.name)

    def resolved(self) -> "ResolvedData":
        """The data after reading. Raises `ConfigError` if they were not read yet."""
        raise ConfigError(f"run.data: the images of {self.name!r} were not read yet")

    def test(self) -> Self:
        """The test rows: all of them, not augmented."""
        return self.held_out().model_copy(update={"validation": None})

    def held_out(self) -> Self:
        """The validation rows: all of them, not augmented."""
        return self.model_copy(update={"augment": Augment(), "limit": None, "view_seed": None})

    def seed_of_views(self) -> int:
        """The seed by which views are drawn."""
        return self.seed if self.view_seed is None else self.view_seed


class ResolvedData(Data):
    """Data after reading: every value is set, and describes the images."""

    digest: str = Field(min_length=1)
    classes: _Classes = Field()  # 0: no labels
    size: _Size = Field()
    mean: tuple[_Mean, _Mean, _Mean] = Field()
    std: tuple[_Std, _Std, _Std] = Field()

    def resolved(self) -> "ResolvedData":
        """The data itself."""
        return self


_READ = ("digest", "classes", "size", "mean", "std")


def _kind(value: Any) -> str:
    """The class of data: resolved if a mapping has all values that reading adds."""
    if isinstance(value, dict):
        value = ResolvedData if all(value.get(key) not in (None, "") for key in _READ) else Data
        return value.__name__
    return type(value).__name__


AnyData = Annotated[
    Annotated[ResolvedData, Tag("ResolvedData")] | Annotated[Data, Tag("Data")],
    Discriminator(_kind),
]
