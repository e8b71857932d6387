"""The table of codecs: how a cache stores a teacher's logits. One line each.

`vectors.py` has those of embeddings and maps.

`AnyCodec` is the field type of a student's recipe that reads any of them. A codec of its own file
and one line here are all that a new one takes, if `k` is the only number that shapes its bytes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import AfterValidator, Field

from raykd.core.registry import Registry
from raykd.outputs.codecs.base import Codec
from raykd.outputs.codecs.dense import Dense
from raykd.outputs.codecs.int8 import Int8
from raykd.outputs.codecs.topk import TopK
from raykd.outputs.codecs.vectors import (
    PCA,
    VECTOR_CODECS,
    AnyVectorCodec,
    Float16,
    Float32,
    Int8Channels,
    VectorCodec,
)

__all__ = [
    "CODECS",
    "PCA",
    "VECTOR_CODECS",
    "AnyCodec",
    "AnyVectorCodec",
    "Codec",
    "CodecName",
    "Dense",
    "Float16",
    "Float32",
    "Int8",
    "Int8Channels",
    "TopK",
    "VectorCodec",
    "codec_of",
]

CODECS: Registry[type[Codec]] = Registry("codec")
CODECS.add("dense", Dense)
CODECS.add("int8", Int8)
CODECS.add("topk", TopK)

# Pydantic reads this union; pyright cannot see its members, and need not.
AnyCodec = Annotated[Union[tuple(CODECS.values())], Field(discriminator="name")]  # noqa: UP007
CodecName = Annotated[str, AfterValidator(CODECS.canonical)]


def codec_of(recipe: Mapping[str, Any]) -> Codec:
    """The codec of a cache's recipe: its key `codec` (default dense), and that codec's numbers."""
    kind = CODECS[recipe.get("codec", "dense")]
    return kind(**{name: recipe[name] for name in kind.parameters})
