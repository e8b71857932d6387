"""The table of methods: one line each. `AnyMethod` is the field type that reads any of them."""

from typing import Annotated, Union

from pydantic import Field

from raykd.methods.base import Method
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.skd import SKD
from raykd.registry import Registry

__all__ = ["METHODS", "AnyMethod", "Method"]

METHODS: Registry[type[Method]] = Registry("method")
METHODS.add("label_only", LabelOnly)
METHODS.add("kd", KD)
METHODS.add("skd", SKD)


# A union over a table that is known only here; type checkers see the base class.
AnyMethod = Annotated[
    Union[tuple(METHODS.values())],  # pyright: ignore[reportInvalidTypeForm]  # noqa: UP007
    Field(discriminator="name"),
]
