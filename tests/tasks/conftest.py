"""Data and a store that the tests of one file share."""

import pytest

from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.storage.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(store):
    return read(store, Data(name="digits", holdout=0.3, limit=160), None)
