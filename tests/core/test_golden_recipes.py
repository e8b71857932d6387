"""Fingerprints and defaults stay as `golden_recipes.json` has them, or change on purpose."""

import json

import pytest

from raykd.core.record import difference
from tests.core.golden_recipes import FILE, RECIPES, current

GOLDEN = json.loads(FILE.read_text())
ANEW = "then `python -m tests.core.golden_recipes` writes the file anew; commit it with the change"


def test_there_are_twenty():
    assert len(RECIPES) == 20
    assert {recipe.kind for recipe in RECIPES.values()} == {
        "teachers", "caches", "preludes", "students", "searches",
    }  # fmt: skip


def test_a_changed_default_has_a_new_revision_of_its_record():
    records = current()["records"]
    for name, pinned in GOLDEN["records"].items():
        now = records.get(name)
        assert now is not None, f"{name} is not in the recipes any more. If it should go, {ANEW}"
        kept = {key: now["defaults"].get(key) for key in pinned["defaults"]}
        changed = "; ".join(difference(pinned["defaults"], kept))
        if changed and now["revision"] == pinned["revision"]:
            pytest.fail(
                f"a default changed ({changed}). Recipes that do not name this field would find "
                f"artefacts made with the former default: raise {name}.revision, {ANEW}"
            )


def test_the_pinned_defaults_are_the_present_ones():
    changed = [*difference(GOLDEN["records"], current()["records"])]
    assert not changed, f"fields, defaults or revisions changed. If that is meant, {ANEW}"


def test_the_fingerprints_are_pinned():
    changed = [*difference(GOLDEN["fingerprints"], current()["fingerprints"])]
    assert not changed, (
        "fingerprints changed: nothing that was made with such recipes is found any more. A new "
        "field needs a default that means what was done before; a renamed field, or one that goes, "
        f"changes fingerprints. If that is meant, say so in the commit, {ANEW}"
    )
