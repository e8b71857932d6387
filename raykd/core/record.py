"""Frozen, strict values that describe what determines a result: limits, and fingerprints."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

DIGITS = 20  # hex digits of a fingerprint: 80 bits, a clash among 10**9 recipes is a 1e-6 chance


class Limits:
    """The largest numbers that a recipe may have: more than any real run has, less than a typo."""

    EPOCHS = 100_000
    SEED = 2**63 - 1
    ROWS = 2**31 - 1  # samples, and the bits that choose among them
    PIXELS = 16_384  # of a side
    PAD = 128  # pixels; their crops are counted one by one
    WORKERS = 100_000
    WIDTH = 1 << 20  # channels, classes, negatives
    WEIGHT = 1e9  # of a loss, and of what is added up or multiplied with one
    TEMPERATURE = 1e4
    RATE = 1e30  # float32 holds its products with a gradient
    SECONDS = 1e9  # thirty years


class Record(BaseModel):
    """A value with named fields: hashable, comparable, picklable, printable, never changed.

    Strict: a number is not read from a string, an unknown field is an error, and neither
    infinity nor NaN is a value.

    `added` names fields that came after artefacts were made without them. At their default, which
    must mean what was done before, they are no part of the plain value, so that artefacts keep
    their names.
    """

    added: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, value: object) -> "Record":
        """The record that plain JSON-like data describes (lists stand for tuples)."""
        return cls.model_validate_json(json.dumps(value))

    def plain(self) -> dict[str, Any]:
        """The record as plain dicts, lists and numbers: what is hashed.

        Every default is written out, but for those of fields that were `added`.
        """
        return _without_added(self, self.whole())

    def whole(self) -> dict[str, Any]:
        """The same with every default, to be read by people."""
        return self.model_dump(mode="json")


def _without_added(value: object, plain: Any) -> Any:
    """What a value was written out as, without the added fields that say nothing new."""
    if isinstance(value, tuple):
        return [_without_added(*pair) for pair in zip(value, plain, strict=True)]
    if not isinstance(value, Record):
        return plain
    return {
        name: _without_added(getattr(value, name), plain[name])
        for name, field in type(value).model_fields.items()
        if name not in value.added or getattr(value, name) != field.default
    }


def canonical(record: Record) -> str:
    """The record's JSON in the one form that is hashed: sorted keys, ASCII, no white space."""
    value = {"kind": type(record).__name__, "value": record.plain()}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(record: Record) -> str:
    """20 hex digits that name the record: equal on every machine and Python version.

    Every field counts, defaults included: a default that changes between versions must
    not find an artefact that was made with the old one. (Of `Record.added` see there.)
    """
    return hashlib.sha256(canonical(record).encode("ascii")).hexdigest()[:DIGITS]


def difference(expected: object, found: object, path: str = "") -> Iterator[str]:
    """Lines `path: expected ..., found ...` for every leaf in which two plain values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{path}.{key}" if path else str(key)
            if key not in found:
                yield f"{inner}: expected {expected[key]!r}, found nothing"
            elif key not in expected:
                yield f"{inner}: expected nothing, found {found[key]!r}"
            else:
                yield from difference(expected[key], found[key], inner)
    elif expected != found:
        yield f"{path}: expected {expected!r}, found {found!r}"
