"""Recipes: strict values, and the fingerprints that name what they determine."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import reduce
from typing import Any

import pytest
from pydantic import ValidationError

from raykd.core.record import DIGITS, Recipe, Record, canonical, difference, fingerprint
from raykd.data.recipe import Data, ResolvedData
from raykd.data.transforms.augment import Augment
from raykd.methods.kd import KD
from raykd.methods.skd import SKD
from raykd.recipes import Optim, OutputsRun, StudentRun, TeacherRun
from raykd.teachers.anchor_route import Route
from tests.each import each

DATA = ResolvedData(
    name="cifar100",
    resize=32,
    limit=5000,
    augment=Augment(pad=4, flip=True),
    seed=1,
    digest="0123456789abcdef0123",
    classes=100,
    size=(32, 32),
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)
TEACHER = TeacherRun(
    model="resnet56", data=DATA, optim=Optim(epochs=120, warmup_epochs=5), seed=3, save_every=20
)
LOGITS = OutputsRun(teacher=TEACHER, anchor=120, data=DATA, embedding=True, precision="bfloat16")
STUDENT = StudentRun(
    model="resnet20",
    data=DATA,
    teacher=TEACHER,
    route=Route(anchors=(60, 120), starts=(0, 80)),
    method=SKD(temperature=3.5, weight=((0, 0.9), (60, 0.5)), radius=2.25),
    label_weight=((0, 0.1), (60, 0.5)),
    optim=Optim(milestones=(150, 180), clip=1.5, ema=0.999, lr=1e-4),
    views=80,
    seed=2,
)
RECIPES = {"teacher": TEACHER, "cache": LOGITS, "student": STUDENT}


@pytest.mark.slow
def test_fingerprints_do_not_depend_on_the_seed_of_python_s_hashes(tmp_path):
    script = tmp_path / "fingerprints.py"
    script.write_text(
        "import json, sys\n"
        "from raykd import recipes\n"
        "from raykd.core.record import fingerprint\n"
        "for kind, text in json.loads(sys.stdin.read()):\n"
        "    print(fingerprint(getattr(recipes, kind).model_validate_json(text)))\n"
    )
    given = [(type(recipe).__name__, recipe.model_dump_json()) for recipe in RECIPES.values()]
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(given),
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [fingerprint(recipe) for recipe in RECIPES.values()]


def test_a_fingerprint_is_20_hex_digits_of_the_hash_of_canonical_json():
    text = canonical(LOGITS)
    assert text.isascii() and json.loads(text)["kind"] == "caches"
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert fingerprint(LOGITS) == hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    assert DIGITS == 20


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of the fields inside a record that are no records themselves."""
    if isinstance(value, Record):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*path, name))
    else:
        yield path


def another(value: Any) -> Any:
    """Some other value of the same type."""
    if value == ():
        return (("stem", 2.0),)
    if isinstance(value, tuple):
        return (another(value[0]), *value[1:])
    if isinstance(value, str):
        return value + "x"
    return not value if isinstance(value, bool) else (value or 0) + 1


def changed(record: Record, path: tuple[str, ...]) -> Record:
    """The record with another value at `path`; whether it is a valid one is not asked."""
    name, *rest = path
    inner = getattr(record, name)
    value = changed(inner, tuple(rest)) if rest else another(inner)
    return record.model_copy(update={name: value})


BARE = StudentRun(model="resnet8", data=Data(name="digits"), teacher=TEACHER, method=KD())


@each("run", [STUDENT, BARE], ids=["every field set", "defaults"])
def test_a_change_of_any_field_gives_a_fingerprint_of_its_own(run):
    with warnings.catch_warnings():
        # Not every other value is one that the field may have, and pydantic says so.
        warnings.simplefilter("ignore", UserWarning)
        # Recipes find their plugins themselves.
        paths = [path for path in leaves(run) if path[-1] != "plugins"]
        names = {path: fingerprint(changed(run, path)) for path in paths}
    assert [path for path, name in names.items() if name == fingerprint(run)] == []
    assert len({*names.values()}) == len(names) > 50


def test_the_leaves_are_those_of_the_plain_recipe():
    for path in leaves(STUDENT):
        reduce(lambda tree, name: tree[name], path, STUDENT.plain())


class Inner(Record):
    x: int = 1


class Outer(Record):
    y: int | None = None
    z: Inner = Inner()
    several: tuple[Inner, ...] = ()


def form(record: Record) -> dict:
    return json.loads(canonical(record))


def test_fields_at_their_default_are_not_hashed():
    assert form(Outer()) == {}
    assert form(Outer(y=2, z=Inner(x=2))) == {"y": 2, "z": {"x": 2}}
    assert form(Outer(several=(Inner(), Inner(x=3)))) == {"several": [{}, {"x": 3}]}
    assert Outer().plain() == {"y": None, "z": {"x": 1}, "several": []}
    assert Outer.read(Outer().plain()) == Outer()


def test_a_raised_revision_changes_the_fingerprint_of_all_that_holds_the_record(monkeypatch):
    monkeypatch.setattr(Inner, "revision", 2)
    assert form(Outer()) == {"z": {"revision": 2}}
    assert form(Outer(several=(Inner(),))) == {"z": {"revision": 2}, "several": [{"revision": 2}]}


def test_a_default_that_is_not_its_class_s_own_is_told_from_that():
    class Slow(Record):
        z: Inner = Inner(x=5)

    assert fingerprint(Slow(z=Inner())) != fingerprint(Slow())


def test_recipes_of_several_kinds_with_equal_fields_differ():
    class One(Recipe):
        kind = "ones"

    class Two(Recipe):
        kind = "twos"

    assert fingerprint(One()) != fingerprint(Two())


def test_a_whole_number_and_its_float_are_one_value():
    assert fingerprint(Optim(lr=1)) == fingerprint(Optim(lr=1.0))
    assert StudentRun.read(BARE.plain() | {"label_weight": 1}) == StudentRun.read(
        BARE.plain() | {"label_weight": 1.0}
    )


def test_a_recipe_survives_json_and_pickle():
    for recipe in RECIPES.values():
        for copy in (type(recipe).read(recipe.plain()), pickle.loads(pickle.dumps(recipe))):
            assert copy == recipe
            assert hash(copy) == hash(recipe)
            assert fingerprint(copy) == fingerprint(recipe)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        STUDENT.seed = 5  # pyright: ignore[reportAttributeAccessIssue]


STRICT = {
    "a number in a string": ({"lr": "0.1"}, "lr", "float_type"),
    "a fraction for a count": ({"epochs": 2.5}, "epochs", "int_type"),
    "a float for a count": ({"epochs": 2.0}, "epochs", "int_type"),
    "a truth for a count": ({"epochs": True}, "epochs", "int_type"),
    "a count for a truth": ({"nesterov": 1}, "nesterov", "bool_type"),
    "text for a truth": ({"nesterov": "yes"}, "nesterov", "bool_type"),
    "an unknown field": ({"learning_rate": 0.1}, "learning_rate", "extra_forbidden"),
    "infinity": ({"lr": float("inf")}, "lr", "finite_number"),
    "not a number": ({"lr": float("nan")}, "lr", "finite_number"),
    "nothing": ({"lr": None}, "lr", "float_type"),
    "an unknown choice": ({"name": "adam"}, "name", "literal_error"),
}


def test_reading_is_strict():
    for value, field, kind in STRICT.values():
        with pytest.raises(ValidationError) as error:
            Optim.read(value)
        assert [(e["loc"], e["type"]) for e in error.value.errors()] == [((field,), kind)]


def test_what_slipped_past_the_checks_has_no_fingerprint():
    for value in [float("nan"), float("inf")]:
        with pytest.raises(ValueError, match="JSON compliant"):
            fingerprint(Optim().model_copy(update={"lr": value}))


def test_difference_names_every_leaf_that_differs():
    expected = {"a": 1, "b": {"c": [1, 2], "d": "x", "same": 0}, "gone": None}
    found = {"a": 1, "b": {"c": [1, 3], "d": "y", "same": 0}, "new": True}
    assert list(difference(expected, found)) == [
        "b.c: expected [1, 2], found [1, 3]",
        "b.d: expected 'x', found 'y'",
        "gone: expected None, found nothing",
        "new: expected nothing, found True",
    ]
    assert list(difference({"a": {"b": 1}}, {"a": 2})) == ["a: expected {'b': 1}, found 2"]
    assert list(difference(STUDENT.plain(), STUDENT.plain())) == []


def test_difference_of_two_recipes_reads_as_dotted_keys():
    other = changed(STUDENT, ("teacher", "optim", "lr"))
    assert list(difference(STUDENT.plain(), other.plain())) == [
        "teacher.optim.lr: expected 0.05, found 1.05"
    ]
