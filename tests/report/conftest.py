import pytest

from raykd.config.experiment import parse
from raykd.report import gather
from raykd.report.page import page
from raykd.storage.store import Store
from tests.report.stored import TEXT, finished


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def experiment():
    return parse(TEXT, "digits")


@pytest.fixture(scope="package")
def report(tmp_path_factory):
    """The report of a finished experiment."""
    store, experiment = Store(tmp_path_factory.mktemp("finished")), parse(TEXT, "digits")
    finished(store, experiment)
    return gather(store, experiment)


@pytest.fixture(scope="package")
def written(report):
    """The page of that report."""
    return page(report)
