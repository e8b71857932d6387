"""How a cache may keep a teacher's logits, as a student's recipe names it.

Shapes: C classes.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raykd.core.record import Limits, Record

Tail = Literal["uniform", "renormalise", "ghost"]
TAILS: tuple[Tail, ...] = ("uniform", "renormalise", "ghost")
Kind = Literal["dense", "int8", "topk"]


class _Codec(Record):
    """What all codecs answer. `whole`: whether every class's logit is kept."""

    whole: ClassVar[bool] = True

    def suits(self, temperature: float) -> bool:
        """Whether a divergence at this temperature is near that from all classes' logits."""
        return True


class Dense(_Codec):
    """Every logit as float16, relative to the row's maximum: 2 C + 4 bytes a row.

    As good as the live teacher for every method.
    """

    name: Literal["dense"] = "dense"


class Int8(_Codec):
    """Every logit as one of 256 levels between the row's extremes: C + 8 bytes a row.

    Off by up to 1/510 of the row's range: as far from the teacher as its own bfloat16 forward is.
    """

    name: Literal["int8"] = "int8"


class TopK(_Codec):
    """The k largest logits, what the others amount to, and the row's mean and deviation.

    2 k + 6 bytes a row and the bits of k class numbers: 39 bytes for k = 10 of C = 1000.

    `tail` says how the other classes are read, and is no part of the cache:

    - `uniform`: each has an equal share of their mass. The mass is exact at temperature 1; what is
      lost is which of them are likelier, and the softer the targets the more that counts.
    - `renormalise`: they have no probability, and the k have all of it (the "marginal re-norm"
      of FKD, Shen and Xing 2022, arXiv 2112.01528).
    - `ghost`: k + 1 classes are compared, of which the last, the ghost, stands for all others, in
      the student's logits too: how the student spreads that mass is left to the labels.

    `SOFTEST` has the highest temperatures that are accepted, from the errors in
    `experiments/README.md`; the ghost's mass is that of temperature 1 and of no other.
    """

    whole: ClassVar[bool] = False

    name: Literal["topk"] = "topk"
    k: int = Field(default=10, ge=1, le=Limits.WIDTH)  # fewer than C
    tail: Tail = "uniform"

    def suits(self, temperature: float) -> bool:
        """Whether the tail's policy is meant for this temperature."""
        return temperature == 1.0 if self.tail == "ghost" else temperature <= SOFTEST[self.tail]


SOFTEST: dict[Tail, float] = {"uniform": 2.0, "renormalise": 1.0}

AnyCodec = Annotated[Dense | Int8 | TopK, Field(discriminator="name")]
Codec = Dense | Int8 | TopK
CODECS: dict[str, type[Codec]] = {"dense": Dense, "int8": Int8, "topk": TopK}


def codec_of(kind: Kind, k: int | None) -> Codec:
    """The codec of a cache, whose tail may be read in any way."""
    return TopK(k=k) if kind == "topk" and k is not None else CODECS[kind]()
