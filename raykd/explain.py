"""Validation errors as sentences that name the place and the remedy."""

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raykd.errors import ConfigError
from raykd.methods import METHODS
from raykd.registry import nearest


def explain(error: ValidationError, model: type[BaseModel], place: str) -> ConfigError:
    """The same errors as one `ConfigError`, a line each.

    `model` is what was being read and `place` what messages call it, such as "experiment.run".
    """
    lines = dict.fromkeys(_line(detail, model, place) for detail in error.errors())
    return ConfigError("\n".join(lines))


def _line(detail: Any, model: type[BaseModel], place: str) -> str:
    names, found = _walk(detail["loc"], model)
    path = ".".join([place, *names])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = [name for candidate in found for name in candidate.model_fields]
        hint = nearest(names[-1], known) or f"; there are: {', '.join(sorted(set(known)))}"
        return f"{path}: no such key{hint}"
    if kind == "missing":
        return f"{path}: this key must be given"
    if kind == "union_tag_not_found":
        return f"{path}.name: this key must be given; there are: {', '.join(_tags(found))}"
    if kind in ("model_type", "dict_type") or (
        kind == "union_tag_invalid" and not isinstance(detail["input"], dict)
    ):
        return f"{path}: expected keys and values ({{key: value}}), got {detail['input']!r}"
    if kind == "union_tag_invalid":
        tag, known = context["tag"], _tags(found)
        if tag in METHODS:
            return f"{path}: {tag!r} cannot stand within this method; choose another one"
        hint = nearest(tag, known) or f"; there are: {', '.join(known)}"
        what = "method" if all(name in METHODS for name in known) else names[-1]
        return f"{path}.name: no {what} is called {tag!r}{hint}"
    message = detail["msg"].removeprefix("Value error, ")
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
        tagged = [candidate for candidate in here if step in _names(candidate)]
        owners = [candidate for candidate in here if step in candidate.model_fields]
        if owners and not (tagged and len(here) > 1):
            names.append(step)
            around = here = [
                inner for owner in owners for inner in _models(owner.model_fields[step].annotation)
            ]
        elif tagged:
            around = here = tagged
        elif here:
            names.append(step)  # a key that no model knows
            around = here
    return names, around


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside a type annotation."""
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
