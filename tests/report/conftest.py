import pytest

from raykd.config.experiment import parse
from raykd.report import gather
from raykd.storage.store import Store
from tests.report.stored import TEXT, finished


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def experiment():
    return parse(TEXT, "digits")


@pytest.fixture
def report(store, experiment):
    finished(store, experiment)
    return gather(store, experiment)
