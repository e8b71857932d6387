"""Frozen, strict values that describe what determines a result: limits, and fingerprints."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from raykd.core.descriptions import descriptions

DIGITS = 20  # hex digits of a fingerprint: 80 bits, a clash among 10**9 recipes is a 1e-6 chance


class Limits:
    """The largest numbers that a recipe may have: more than any real run has, less than a typo."""

    EPOCHS = 100_000
    SEED = 2**63 - 1
    ROWS = 2**31 - 1  # samples, and the bits that choose among them
    PIXELS = 16_384  # per side
    PAD = 128  # pixels; their crops are counted one by one
    WORKERS = 100_000
    WIDTH = 1 << 20  # channels, classes, negatives
    WEIGHT = 1e9  # weight of a loss, and factors and terms beside one
    TEMPERATURE = 1e4
    RATE = 1e30  # float32 holds its products with a gradient
    SECONDS = 1e9  # thirty years


class Record(BaseModel):
    """A value with named fields: hashable, comparable, picklable, printable, never changed.

    Strict: a number is not read from a string, an unknown field is an error, and neither
    infinity nor NaN is a value.

    `revision` goes up where the same fields come to mean something else, and where a default
    changes: it is part of the fingerprint, and defaults are not.

    The docstring under a field is its description, in the JSON schema and in `raykd explain`.
    """

    revision: ClassVar[int] = 1

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The JSON schema of the class, with the description of each field."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema

    @classmethod
    def read(cls, value: object) -> Self:
        """The record that plain JSON-like data describes (lists stand for tuples)."""
        return cls.model_validate_json(json.dumps(value))

    def plain(self) -> dict[str, Any]:
        """The record as plain dicts, lists and numbers, with every default written out."""
        return self.model_dump(mode="json")


class Recipe(Record):
    """A record that determines an artefact of a store.

    `kind` is the folder that such artefacts share, and part of the fingerprint.
    """

    kind: ClassVar[str]


def canonical(record: Record) -> str:
    """The record's JSON in the one form that is hashed: sorted keys, ASCII, no white space.

    Fields at their default are left out, so a new field whose default means what was done before
    changes no fingerprint. A field `name` is always there, since it tells the classes of a union
    apart, as `kind` does with recipes. A revision is there where it is not 1.
    """
    form = _canonical_form(record, record.plain())
    return json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical_form(value: object, plain: Any) -> Any:
    """The hashed part of a value that was written out as `plain`."""
    if isinstance(value, tuple) and isinstance(plain, list):  # pairs may be written as a mapping
        return [_canonical_form(*pair) for pair in zip(value, plain, strict=True)]
    if not isinstance(value, Record):
        return plain
    form: dict[str, Any] = {"kind": value.kind} if isinstance(value, Recipe) else {}
    if value.revision != 1:
        form["revision"] = value.revision
    for name, field in type(value).model_fields.items():
        inner = _canonical_form(getattr(value, name), plain[name])
        at_default = getattr(value, name) == field.get_default(call_default_factory=True)
        # A record at its default still counts where its own form has something to say.
        if name == "name" or not at_default or inner not in ({}, plain[name]):
            form[name] = inner
    return form


def fingerprint(record: Record) -> str:
    """20 hex digits that name the record: equal on every machine and Python version."""
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
