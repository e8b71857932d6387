"""`raykd explain`, as a person or a script calls it."""

import json

from click.testing import CliRunner

from raykd.cli import main
from raykd.methods import METHODS
from tests.each import each


def explained(*words, code=0):
    result = CliRunner().invoke(main, ["explain", *words])
    assert result.exit_code == code, result.output
    return result.output


def test_a_key_has_its_description_type_default_and_class():
    assert explained("run.optim.lr").splitlines() == [
        "run.optim.lr: Learning rate at the beginning, or after the warm-up.",
        "  type     number above 0 to 1e+30",
        "  default  0.05",
        "  in       raykd.recipes.optim.Optim",
    ]


def test_a_key_that_differs_by_method_is_explained_for_each():
    text = explained("run.method.temperature")
    assert "run.method[kd].temperature: Temperature T" in text
    assert "run.method[crd].temperature: Temperature tau" in text


@each("name", ["relational_kd", "rkd"])
def test_a_method_or_its_alias_chooses_one(name):
    text = explained(f"run.method[{name}].angle_weight")
    assert text.startswith("run.method[relational_kd].angle_weight: Weight lambda_A")


def test_a_choice_of_methods_lists_their_names():
    text = explained("run.method")
    assert all(f"\n  {name} " in text for name in METHODS)


def test_a_method_has_its_whole_description_and_its_keys():
    text = explained("run.method[kd]")
    assert "Hinton et al. 2015" in text
    assert "run.method[kd].target" in text


def test_a_part_lists_its_keys_with_their_defaults():
    text = explained("run.data.augment")
    assert "run.data.augment.flip    Mirror half of the views. (false)" in text


def test_without_a_key_the_parts_are_listed():
    assert all(f"\n  {part} " in explained() for part in ("data", "run", "grid", "scale"))


@each(
    ("key", "nearest"),
    [
        ("run.method.temprature", "'run.method.temperature'"),
        ("run.optim.learning", "run.optim"),
        ("workers", "'scale.workers'"),
        ("run.method[kdd].weight", "'kd'"),
        ("run.optim.lr.more", "run.optim.lr has no keys"),
        ("run..lr", "expected dotted keys"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
    text = explained(key, code=2)
    assert text.startswith(f"error: {key}: ") and nearest in text


def test_json_has_bounds_as_numbers_and_choices_as_a_list():
    lr, name = (
        json.loads(explained(f"run.optim.{key}", "--json"))["meanings"][0] for key in ("lr", "name")
    )
    assert (lr["default"], lr["exclusive_minimum"], lr["minimum"]) == (0.05, 0, None)
    assert name["choices"] == ["sgd", "adamw"]
    keys = json.loads(explained("scale", "--json"))["meanings"][0]["keys"]
    assert {"key", "description", "type", "default"} <= keys[0].keys()
    assert keys[0]["key"] == "scale.workers"


def test_every_key_that_is_listed_can_be_explained():
    for part in ("data", "sweep", "scale", "run", "run.optim", "run.data", "run.method[sakd]"):
        for key in json.loads(explained(part, "--json"))["meanings"][0]["keys"]:
            assert explained(key["key"])
