"""Fixtures that the tests of trackers share."""

import pytest

from raykd.storage.store import Store
from tests.small import prepare, student_run


@pytest.fixture(scope="session")
def teacher_store(tmp_path_factory):
    """A store with the teacher and the caches of a student."""
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store))
    return store
