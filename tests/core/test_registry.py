"""Tables from names to things."""

import pytest

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry, nearest


@pytest.fixture
def fruit() -> Registry[int]:
    """A table of three."""
    table: Registry[int] = Registry("fruit")
    for number, name in enumerate(("pear", "apple", "cherry")):
        table.add(name, number)
    return table


def test_a_table_keeps_the_order_in_which_things_were_added(fruit):
    assert list(fruit) == ["pear", "apple", "cherry"]
    assert list(fruit.values()) == [0, 1, 2]
    assert len(fruit) == 3


def test_add_returns_the_thing(fruit):
    assert fruit.add("plum", 7) == 7
    assert fruit["plum"] == 7


def test_a_miss_suggests_the_nearest_name(fruit):
    with pytest.raises(ConfigError) as error:
        fruit["aple"]
    assert str(error.value) == "no fruit is called 'aple'; did you mean 'apple'?"


def test_a_miss_that_is_near_nothing_lists_what_there_is(fruit):
    with pytest.raises(ConfigError) as error:
        fruit["steak"]
    assert str(error.value) == "no fruit is called 'steak'; there are: pear, apple, cherry"


def test_a_clash_is_an_error_and_changes_nothing(fruit):
    with pytest.raises(ValueError, match="two things want to be the fruit 'pear'"):
        fruit.add("pear", 9)
    assert fruit["pear"] == 0


def test_asking_whether_a_name_is_there_raises_nothing(fruit):
    assert "pear" in fruit
    assert "steak" not in fruit
    assert 3 not in fruit


def test_an_alias_finds_the_thing_and_is_not_listed(fruit):
    fruit.add("plum", 7, aliases=["prune", "Zwetschge"])
    assert fruit["prune"] == fruit["Zwetschge"] == fruit["plum"] == 7
    assert "prune" in fruit
    assert list(fruit) == ["pear", "apple", "cherry", "plum"]
    assert len(fruit) == 4
    assert list(fruit.values()) == [0, 1, 2, 7]


def test_the_canonical_name_is_the_listed_one(fruit):
    fruit.add("plum", 7, aliases=["prune"])
    assert fruit.canonical("prune") == fruit.canonical("plum") == "plum"
    with pytest.raises(ConfigError, match="no fruit is called 'prunes'; did you mean 'prune'"):
        fruit.canonical("prunes")
    with pytest.raises(ConfigError, match=r"there are: pear, apple, cherry, plum$"):
        fruit.canonical("steak")


@pytest.mark.parametrize(
    ("name", "aliases", "taken"),
    [("fig", ["pear"], "pear"), ("prune", [], "prune"), ("fig", ["date", "prune"], "prune")],
)
def test_names_and_aliases_clash_alike(fruit, name, aliases, taken):
    fruit.add("plum", 7, aliases=["prune"])
    with pytest.raises(ValueError, match=f"two things want to be the fruit '{taken}'"):
        fruit.add(name, 9, aliases)
    assert "fig" not in fruit
    assert "date" not in fruit
    assert fruit["pear"] == 0
    assert fruit["prune"] == 7


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("sed", ["seed", "views"]) == "; did you mean 'seed'?"
    assert nearest("quux", ["seed", "views"]) == ""
    assert nearest("seed", []) == ""
