from collections.abc import Iterator
from typing import Any

import pytest

from raykd.config.schema import schema
from tests.each import each

OTHER_DEFAULT = {("TeacherRun", "data"), ("Assistant", "data")}  # the student's


def owners() -> dict[str, dict[str, Any]]:
    """The objects of the schema by the names of their classes."""
    value = schema()
    return {"ExperimentFile": value} | value["$defs"]


def numbers(value: Any) -> Iterator[dict[str, Any]]:
    """The parts of a schema that describe a number."""
    if isinstance(value, dict):
        if value.get("type") in ("integer", "number"):
            yield value
        for key, inner in value.items():
            yield from () if key == "default" else numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)


def test_every_property_has_a_description_and_a_default():
    lacking = []
    for owner, value in owners().items():
        for key, field in value.get("properties", {}).items():
            required = key in value.get("required", ()) or (owner, key) in OTHER_DEFAULT
            if "description" not in field or not (required or "default" in field):
                lacking.append(f"{owner}.{key}")
    assert lacking == []


def test_every_description_is_a_sentence():
    for value in owners().values():
        for field in value.get("properties", {}).values():
            text = field["description"]
            assert text.endswith(".") and text == " ".join(text.split()), text


def test_every_number_has_both_bounds():
    for number in numbers(schema()):
        assert {"minimum", "exclusiveMinimum"} & number.keys(), number
        assert {"maximum", "exclusiveMaximum"} & number.keys(), number


@pytest.mark.slow
@each(
    ("owner", "key", "expected"),
    [
        ("KD", "temperature", "Temperature T of both networks' probabilities."),
        ("KD", "name", "Name of the method, or an alias; a name alone takes every default."),
        ("StudentRun", "method", "Distillation method; label_only reads no teacher."),
    ],
)
def test_a_docstring_under_a_field_is_its_description(owner, key, expected):
    assert owners()[owner]["properties"][key]["description"] == expected
