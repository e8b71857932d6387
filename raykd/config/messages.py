"""Mistakes as sentences that name the place and the remedy: all at once, and each once."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raykd.core.errors import ConfigError
from raykd.core.open_union import Open
from raykd.core.registry import nearest

# A dotted key -> where it stands, such as "mine.yaml, line 4".
Places = Mapping[str, str]
NOWHERE: Places = MappingProxyType({})
_KEYED = re.compile(r"experiment\.([\w.]*\w)")
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def explain(error: ValidationError, model: type[BaseModel], prefix: str) -> ConfigError:
    """Join errors into one `ConfigError`, a line each.

    `model` is the class that was read; `prefix` is its dotted key, such as "experiment.run".
    """
    details = error.errors()
    paths = [".".join([prefix, *_walk(detail["loc"], model)[0]]) for detail in details]
    bounded = [f"{p}." for p, d in zip(paths, details, strict=True) if d["type"] in _BOUNDS]
    lines: dict[str, None] = {}
    for path, detail in zip(paths, details, strict=True):
        # Members that are wrong themselves are missing from what holds them.
        within = detail["type"] == "too_short" and any(p.startswith(f"{path}.") for p in paths)
        # The other branches of a union are of no use where a number is out of bounds.
        within = within or any(b.startswith(f"{path}.") for b in bounded)
        if detail["type"] in _BOUNDS or not within:
            lines[_line(detail, model, path)] = None
    return ConfigError("\n".join(lines))


def _line(detail: Any, model: type[BaseModel], path: str) -> str:
    """The sentence about one error, at the dotted key `path`."""
    names, candidates = _walk(detail["loc"], model)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        choices = [name for candidate in candidates for name in candidate.model_fields]
        hint = nearest(names[-1], choices) or f"; there are: {', '.join(sorted(set(choices)))}"
        return f"{path}: no such key{hint}"
    if kind == "too_short":
        return f"{path}: expected {context['min_length']} or more, got {detail['input']!r}"
    if kind == "missing":
        return f"{path}: this key must be given"
    if kind == "union_tag_not_found":
        return f"{path}.name: this key must be given; there are: {', '.join(_tags(candidates))}"
    if kind in ("model_type", "dict_type") or (
        kind == "union_tag_invalid" and not isinstance(detail["input"], dict)
    ):
        return f"{path}: expected keys and values ({{key: value}}), got {detail['input']!r}"
    if kind == "union_tag_invalid":
        from raykd.methods import METHODS  # torch takes seconds to import
        from raykd.methods.presets import PRESETS

        tag, choices = context["tag"], _tags(candidates)
        if tag in METHODS:
            return f"{path}: {tag!r} cannot stand within this method; choose another one"
        presets = PRESETS if names[-1] == "method" else ()
        hint = nearest(tag, [*choices, *presets]) or f"; there are: {', '.join(choices)}"
        what = "method" if all(name in METHODS for name in choices) else names[-1]
        yours = "; one of your own comes from a file under plugins, with @raykd.register.method"
        ours = what != "method" or hint.startswith("; did you mean")
        return f"{path}.name: no {what} is called {tag!r}{hint}{'' if ours else yours}"
    message = detail["msg"].removeprefix("Value error, ")
    for limit in context.values() if kind in _BOUNDS else ():
        if isinstance(limit, float):  # which pydantic writes with all digits
            message = f"{message.rpartition(' ')[0]} {limit:g}"
    if kind == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message[0].lower()}{message[1:]}, got {detail['input']!r}"


def _walk(
    location: Iterable[str | int], model: type[BaseModel]
) -> tuple[list[str], list[type[BaseModel]]]:
    """The field names along an error's location, and the models around the last of them.

    Leaves out what pydantic adds to a location: the tag or the type of a union's branch.
    """
    names: list[str] = []
    here = [model]  # models whose fields the next name may be
    around = here
    for step in location:
        if isinstance(step, int):
            names.append(str(step))
            continue
        if step.startswith("<"):  # a tag of plain values
            continue
        tagged = [candidate for candidate in here if step in _names(candidate)]
        owners = [candidate for candidate in here if step in candidate.model_fields]
        if owners and not (tagged and len(here) > 1):
            names.append(step)
            around = here = [
                inner for owner in owners for inner in _members(owner.model_fields[step])
            ]
        elif tagged:
            around = here = tagged
        elif here:
            names.append(step)  # a key that no model knows
            around = here
    return names, around


def _members(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The models that a field may have."""
    for annotation in (field.annotation, *field.metadata):
        yield from _models(annotation)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside a type annotation, those from plugins included."""
    if isinstance(annotation, Open):
        yield from annotation.kinds()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """The names by which a union tells a model from the others, aliases included."""
    field = model.model_fields.get("name")
    tags = get_args(field.annotation) if field is not None else ()
    return tags or (model.__name__,)


def _tags(models: list[type[BaseModel]]) -> list[str]:
    return [name for model in models for name in _names(model)]


class Mistakes:
    """Mistakes in the order in which they were met, and the students that each is about."""

    def __init__(self, places: Places = NOWHERE) -> None:
        self._places = places
        self._found: dict[str, list[str | None]] = {}  # and a student each time

    def add(self, text: str, student: str | None = None) -> None:
        """Take in a mistake, or one a line; `student` is whose it is, where that is not plain."""
        for line in text.splitlines():
            self._found.setdefault(line, []).append(student)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """A region whose `ConfigError` is a mistake among others."""
        try:
            yield
        except ConfigError as error:
            self.add(str(error))

    def raise_all(self) -> None:
        """Raise them as one `ConfigError`, a line each, if there are any."""
        if self._found:
            raise ConfigError("\n".join(map(self._line, self._found)))

    def _line(self, text: str) -> str:
        """A mistake with its students and its place."""
        first, *others = self._found[text]
        ends = text.endswith(".") and not text.endswith("...")
        text = text[:-1] if ends and (self._places or first or others) else text
        if first is not None or others:
            text += f"; in {first or 'one student'}"
        if others:
            text += f" and {len(others):,} more student{'s' if len(others) > 1 else ''}"
        keyed = _KEYED.match(text)
        place = place_of(keyed[1], self._places) if keyed else None
        return text if place is None else f"{text} ({place})"


def place_of(key: str, places: Places) -> str | None:
    """Line of a dotted key, or of the part that it lies in; None if unknown.

    A key of `run` that a grid or a search varies stands there.
    """
    parts = key.split(".")
    inside = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for name in inside:
        for varied in (f"grid.{name}", f"search.{name}", name):
            if varied in places:
                return places[varied]
    return None
