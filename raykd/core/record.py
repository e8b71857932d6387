"""Frozen, strict values that describe what determines a result: limits, and fingerprints."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from raykd.core.descriptions import descriptions
from raykd.core.plugins import Plugin, any_loaded, plugins_of

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
    plugin: ClassVar[str] = ""  # digest of the plugin that the class is from; empty: raykd's own

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

    def origins(self) -> Iterator[str]:
        """Digests of the plugins of its class and of what it names; empty texts for raykd's own."""
        yield self.plugin


class Recipe(Record):
    """A record that determines an artefact of a store.

    `kind` is the folder that such artefacts share, and part of the fingerprint. So is the content
    of the plugins that it uses, recipes within it apart, which have their own.
    """

    # Its hash and its fingerprint, once they were asked for; no copy has them.
    __slots__ = ("_fingerprint", "_hash")

    kind: ClassVar[str]

    plugins: tuple[str, ...] = ()
    """SHA-256 of each plugin that it uses, in hex; filled in, whatever is given."""

    @model_validator(mode="after")
    def _find_plugins(self) -> Self:
        return self._with_plugins()

    def _with_plugins(self) -> Self:
        """The recipe itself, once `plugins` are those that it uses."""
        used = {""}
        if any_loaded():  # else all is raykd's own
            used.update(self.origins())
            for value in _values(self):
                for part in value if isinstance(value, tuple) else (value,):
                    used.update(_origins(part))
        object.__setattr__(self, "plugins", tuple(sorted(used - {""})))
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, and with the plugins that it uses then."""
        return super().model_copy(update=update, deep=deep)._with_plugins()

    def __hash__(self) -> int:
        return _kept(self, "_hash", lambda: hash((type(self), *_values(self))))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled with its plugins, which are loaded before the fields are read."""
        function, arguments, *rest = super().__reduce_ex__(protocol)
        if not self.plugins:
            return function, arguments, *rest
        return _bare, (type(self), plugins_of(self.plugins)), *rest


_T = TypeVar("_T")


def _values(record: Record) -> tuple[Any, ...]:
    """The values of a record's fields."""
    return tuple(getattr(record, name) for name in type(record).model_fields)


def _kept(recipe: Recipe, slot: str, work_out: Callable[[], _T]) -> _T:
    """The value of a recipe's slot, worked out the first time: a recipe never changes."""
    try:
        return getattr(recipe, slot)
    except AttributeError:
        value = work_out()
        object.__setattr__(recipe, slot, value)
        return value


def _bare(kind: type[Recipe], _: tuple[Plugin, ...]) -> Recipe:
    """A recipe that is being unpickled, still without its fields."""
    return kind.__new__(kind)


def _origins(value: object) -> Iterator[str]:
    """Digests of the plugins of a record and of what is in it, without recipes."""
    if not isinstance(value, Record) or isinstance(value, Recipe):
        return
    yield from value.origins()
    for name in type(value).model_fields:
        inner = getattr(value, name)
        for part in inner if isinstance(inner, tuple) else (inner,):
            yield from _origins(part)


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
    for name, default in _defaults(type(value)).items():
        inner = _canonical_form(getattr(value, name), plain[name])
        at_default = getattr(value, name) == default
        # A record at its default still counts where its own form has something to say.
        if name == "name" or not at_default or inner not in ({}, plain[name]):
            form[name] = inner
    return form


@functools.cache
def _defaults(kind: type[Record]) -> dict[str, Any]:
    """The default of each field of a class; nothing equals that of a field which must be given."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
    }


def fingerprint(record: Record) -> str:
    """20 hex digits that name the record: equal on every machine and Python version."""
    if isinstance(record, Recipe):
        return _kept(record, "_fingerprint", lambda: _digest(record))
    return _digest(record)


def _digest(record: Record) -> str:
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
