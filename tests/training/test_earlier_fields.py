"""A store of before some fields were added: what it holds is found, and read."""

import json

import pytest

from raykd.outputs.manifest import MANIFEST
from raykd.storage.store import MARKER, Store, read_json, write_json
from tests.small import prepare, student_run, trained
from tests.training.route_runs import carried

ADDED = {
    "students": ("task", "label_smoothing"),
    "teachers": ("refresh_statistics", "label_smoothing"),
    "caches": ("logits", "precision"),
}


def without(value, names):
    """A value without some keys, at whatever depth."""
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_fields_that_were_added_since_are_at_their_defaults(tmp_path):
    store = Store(tmp_path / "store")
    run = student_run(store)
    prepare(store, run)
    trained(store, run)
    names = {name for kind in ADDED.values() for name in kind}
    for marker in store.root.glob(f"*/*/{MARKER}"):
        if marker.parent.parent.name in ADDED:
            marker.write_text(json.dumps(without(json.loads(marker.read_text()), names)))
    for path in store.root.glob(f"caches/*/{MANIFEST}"):
        value = read_json(path)
        write_json(path, value | {"recipe": without(value["recipe"], names)})
    again = Store(store.root)
    assert all(again.has(each) for each in (run, run.teacher))
    other = run.model_copy(update={"seed": 5})
    outcome = carried(again, other)
    assert again.has(other)
    assert {kind: count for kind, count in outcome.made.items() if count} == {"students": 1}
