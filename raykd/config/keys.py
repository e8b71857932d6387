"""The keys of experiment files: their descriptions, types, defaults and bounds, by dotted key.

They are read from the JSON schema that editors use, so both say the same.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raykd.config.schema import schema
from raykd.core.errors import ConfigError
from raykd.core.record import Record
from raykd.core.registry import nearest

_STEP = re.compile(r"([^\[\].]+)(?:\[([^\[\]]*)\])?")
_TEACHERS = {"TeacherRun": "network", "Assistant": "student", "PanelRun": "panel"}
_DEPTH = 5  # steps of the keys among which the nearest to a wrong one is looked for


@dataclass(frozen=True)
class Form:
    """One of the objects that a value may be: a method, a teacher, a codec."""

    label: str  # its name in the file, or a word for it
    aliases: tuple[str, ...]
    description: str
    properties: dict[str, Any]
    required: tuple[str, ...]
    defined_in: str  # its class


@dataclass(frozen=True)
class Key:
    """One key of an experiment file.

    A bound is None where there is none, or where the key has several numbers. `choices` are the
    words that it may be; `forms` the objects.
    """

    key: str
    description: str
    type: str
    default: Any
    required: bool
    minimum: float | None
    exclusive_minimum: float | None
    maximum: float | None
    exclusive_maximum: float | None
    choices: tuple[str, ...]
    defined_in: str
    forms: tuple[Form, ...]

    def plain(self) -> dict[str, Any]:
        """All of it but the forms' own keys, for JSON."""
        names = tuple(form.label for form in self.forms)
        return {name: getattr(self, name) for name in _PLAIN} | {"forms": names}

    def below(self) -> Iterator["Key"]:
        """The keys of its forms."""
        for form in self.forms:
            for name in form.properties:
                yield _key(self.key, form, name, alone=len(self.forms) == 1)


_PLAIN = tuple(name for name in Key.__dataclass_fields__ if name != "forms")


def explain(dotted: str = "") -> list[Key]:
    """The key at `dotted`, once for each form of what it stands in: one for each method, say.

    `run.method[kd].temperature` chooses a form; "" is the whole file. Raises `ConfigError` where
    there is no such key, with the nearest ones.
    """
    found = [_whole()]
    path = ""
    for step in dotted.split(".") if dotted else ():
        if step.isdecimal() and path:  # the place in a list
            continue
        match = _STEP.fullmatch(step)
        if match is None:
            raise ConfigError(f"{dotted}: expected dotted keys, such as run.method[kd].temperature")
        name, label = match.groups()
        below = [
            _key(key.key, form, name, alone=len(key.forms) == 1)
            for key in found
            for form in key.forms
            if name in form.properties
        ]
        if not below:
            raise ConfigError(f"{dotted}: no such key{_nearest(found, path, dotted)}")
        path = f"{path}.{name}".lstrip(".")
        found = _once(below, path)
        if label is not None:
            found = [_chosen(key, label, dotted) for key in found]
            path = f"{path}[{found[0].forms[0].label}]"
    return found


def _chosen(key: Key, label: str, dotted: str) -> Key:
    """The key as one of its forms has it."""
    for form in key.forms:
        if label in (form.label, *form.aliases):
            return dataclasses.replace(
                key,
                key=f"{key.key}[{form.label}]",
                description=form.description,
                type="keys",
                default={"name": form.label} if "name" in form.properties else {},
                required=False,
                choices=(),
                defined_in=form.defined_in,
                forms=(form,),
            )
    names = [name for form in key.forms for name in (form.label, *form.aliases)]
    hint = nearest(label, names) or f"; there are: {', '.join(names) or 'none'}"
    raise ConfigError(f"{dotted}: {key.key} has no form {label!r}{hint}")


def _once(keys: list[Key], path: str) -> list[Key]:
    """The keys, as one without a form where they say the same."""
    if len({(key.description, key.type, str(key.default)) for key in keys}) > 1:
        return keys
    return [dataclasses.replace(keys[0], key=keys[0].key if len(keys) == 1 else path)]


def _nearest(found: list[Key], path: str, dotted: str) -> str:
    """The end of a message about a key that is not there: what it may have been."""
    last = dotted.rpartition(".")[2].partition("[")[0]
    here = list(
        dict.fromkeys(name for key in found for form in key.forms for name in form.properties)
    )
    if not here:
        return f"; {path} has no keys"
    close = difflib.get_close_matches(last, here, n=1)
    if close:
        return f"; did you mean {f'{path}.{close[0]}'.lstrip('.')!r}?"
    ends = [key for key in _all_keys() if key.rpartition(".")[2] == last]
    if not ends:
        names = {key.rpartition(".")[2] for key in _all_keys()}
        words = difflib.get_close_matches(last, names, n=2, cutoff=0.7)
        ends = [key for key in _all_keys() if key.rpartition(".")[2] in words]
    if ends:
        return f"; did you mean {' or '.join(map(repr, ends[:3]))}?"
    return f"; there are: {', '.join(here)}"


@functools.cache
def _all_keys() -> tuple[str, ...]:
    """Dotted keys without the names of forms, the shortest first."""
    keys: dict[str, None] = {}
    level = [("", _whole())]
    for _ in range(_DEPTH):
        below: dict[str, Key] = {}
        for path, key in level:
            for form in key.forms:
                for name in form.properties:
                    below.setdefault(
                        f"{path}.{name}".lstrip("."), _key(path, form, name, alone=True)
                    )
        level = [(path, key) for path, key in below.items() if path not in keys]
        keys |= dict.fromkeys(below)
    return tuple(keys)


@functools.cache
def _schema() -> dict[str, Any]:
    return schema()


@functools.cache
def _classes() -> dict[str, type[Record]]:
    """The record classes by name; an assistant is a student."""

    def below(kind: type[Record]) -> Iterator[type[Record]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    kinds = {kind.__name__: kind for kind in below(Record)}
    return kinds | {"Assistant": kinds["StudentRun"]}


def _whole() -> Key:
    """The whole file, as a key without a name."""
    form = _form(_schema(), "ExperimentFile")
    summary = "The parts of an experiment file."
    return Key(
        "", summary, "keys", None, True, None, None, None, None, (), form.defined_in, (form,)
    )


def _key(path: str, form: Form, name: str, *, alone: bool) -> Key:
    """One key of a form at a dotted path."""
    node = form.properties[name]
    whole = path if alone or path.endswith("]") or not path else f"{path}[{form.label}]"
    numbers = [part for part in _parts(node) if part.get("type") in ("integer", "number")]
    number = numbers[0] if len(numbers) == 1 else {}
    return Key(
        key=f"{whole}.{name}".lstrip("."),
        description=node["description"],
        type=_type(node),
        default=node.get("default"),
        required=name in form.required,
        minimum=number.get("minimum"),
        exclusive_minimum=number.get("exclusiveMinimum"),
        maximum=number.get("maximum"),
        exclusive_maximum=number.get("exclusiveMaximum"),
        choices=tuple(dict.fromkeys(word for part in _parts(node) for word in _words(part))),
        defined_in=form.defined_in,
        forms=tuple(_forms(node)),
    )


def _target(node: dict[str, Any]) -> dict[str, Any]:
    """The node that a reference leads to, or the node itself."""
    return _schema()["$defs"][_name(node)] if "$ref" in node else node


def _name(node: dict[str, Any]) -> str:
    return node["$ref"].rpartition("/")[2]


def _parts(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The alternatives that a value may be."""
    several = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    several += [node[key] for key in ("then", "else") if key in node]
    if not several:
        yield node
    for inner in several:
        yield from _parts(inner)


def _forms(node: dict[str, Any]) -> Iterator[Form]:
    """The objects that a value, or a member of it, may be, each once."""
    seen = set()
    for part in _parts(node):
        target = _target(part)
        inner = target.get("items") or target.get("additionalProperties")
        if "$ref" in part and "properties" in target:
            forms = [_form(target, _name(part))]
        elif target is not part:
            forms = list(_forms(target))
        else:
            forms = list(_forms(inner)) if isinstance(inner, dict) else []
        for form in forms:
            if form.label not in seen:
                seen.add(form.label)
                yield form


def _form(node: dict[str, Any], kind: str) -> Form:
    """The form of an object, which a class describes."""
    names = _words(node["properties"].get("name", {}))
    known = _classes().get(kind, Record)
    return Form(
        label=names[0] if names else _TEACHERS.get(kind, kind),
        aliases=tuple(names[1:]),
        description=node.get("description", ""),
        properties=node["properties"],
        required=tuple(node.get("required", ())),
        defined_in=f"{known.__module__}.{known.__name__}",
    )


def _words(node: dict[str, Any]) -> list[str]:
    """The words that a value may be."""
    return [str(word) for word in node.get("enum", [node["const"]] if "const" in node else [])]


def _type(node: dict[str, Any]) -> str:
    """The type of a value in words, with its bounds."""
    texts: dict[str, None] = {}
    objects = [part for part in _parts(node) if "properties" in _target(part)]
    for part in _parts(node):
        if part in objects:
            texts["keys" if len(objects) == 1 else f"keys of {len(objects)} forms"] = None
        else:
            texts[_plain_type(part)] = None
    return ", or ".join(texts)


def _plain_type(node: dict[str, Any]) -> str:
    """The type of a value that is no object of ours."""
    node = _target(node)
    if words := _words(node):
        return f"one of {', '.join(words)}" if len(words) > 1 else repr(words[0])
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(node)
    if kind == "array":
        if "prefixItems" in node:
            return f"[{', '.join(map(_type, node['prefixItems']))}]"
        return f"list of {_type(node['items'])}" if node.get("items") else "list"
    if kind == "object":
        inner = node.get("additionalProperties")
        return f"{{name: {_type(inner)}}}" if isinstance(inner, dict) else "keys"
    return {"boolean": "true or false", "string": "text", "null": "null"}.get(
        kind or "", "anything"
    )


def _bounds(node: dict[str, Any]) -> str:
    """The bounds of a number, as words that follow its type."""
    words = {"minimum": "from", "exclusiveMinimum": "above"}
    words |= {"maximum": "to", "exclusiveMaximum": "to below"}
    return "".join(f" {word} {_number(node[key])}" for key, word in words.items() if key in node)


def _number(value: float) -> str:
    """A bound as text: small whole numbers with all digits."""
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e12 else f"{value:,g}"
