"""Images that are decoded while a run goes on: more of them than memory holds, at full size."""

from typing import Any

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record


class Stream(Record):
    """How an image of any size becomes a square one, each time that its turn comes.

    Training views show what `augment.crop` says; without it, and where a network is tested, the
    shorter side is brought to `resize` pixels and the centre is cut out, as is usual for ImageNet.
    A teacher may have a `size` and `resize` of its own: it sees the same part of the picture.
    Without a `resize`, it is in the proportion that is usual, 256 to a `size` of 224.
    """

    size: int = Field(default=224, ge=1, le=Limits.PIXELS)  # of the side of what a network sees
    resize: int = Field(
        default=256, ge=1, le=Limits.PIXELS
    )  # of the shorter side before the centre is cut out
    # JPEG files are scaled down by 2 to 8 as they are decoded where at least the wanted size is
    # left: faster for large photographs, with other pixels than the exact way.
    draft: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_proportion(cls, value: Any) -> Any:
        """The values with a `resize`, which follows the size where it is not given."""
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
