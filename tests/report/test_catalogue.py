import pytest

from raykd.report.catalogue import catalogue, records
from raykd.report.files import to_json
from tests.tiers import slow_but


def test_methods_have_their_name_apart_from_the_aliases_and_lists_as_lists(store):
    by_name = {row["method"]: row for row in records("methods", store)}
    skd, label_only = by_name["spherical_kd"], by_name["label_only"]
    assert (skd["aliases"], skd["reads"], skd["from_cache"]) == (["skd"], ["logits"], True)
    assert skd["codecs"] == ["dense", "int8"]
    assert (label_only["reads"], label_only["from_cache"]) == ([], None)
    assert isinstance(skd["label_weight"], float)
    shown = {row["method"] for row in catalogue("methods", store)}
    assert {"spherical_kd, skd", "label_only"} <= shown


def test_tasks_are_described_in_whole_sentences(store):
    assert all(row["about"].endswith(".") for row in records("tasks", store))


def test_json_has_the_conclusion_and_places(report):
    value = to_json(report)
    ranks = {student["label"]: student["rank"] for student in value["students"]}
    assert value["conclusion"].startswith("kd (top-1 93.17 %) is above label_only")
    assert ranks["kd"] == [1, 3] and ranks["label_only"] == [2, 4]


@pytest.mark.parametrize("what", slow_but(["models", "datasets"], ["datasets"]))
def test_a_listing_is_the_same_in_both_forms(store, what):
    assert catalogue(what, store) == records(what, store)
