"""Fixtures of all tests, and settings of torch and matplotlib under test."""

import os
import shutil
import tempfile
from pathlib import Path

# Before matplotlib is imported: no test opens a window, whatever the machine prefers.
os.environ["MPLBACKEND"] = "Agg"
# Nothing is remembered from one run of the tests to the next, nor for the user who runs them.
os.environ["RAYKD_REMEMBERED"] = tempfile.mkdtemp(prefix="raykd-remembered-")

import pytest
import torch

from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.storage.store import Store
from tests.servers.bucket import bucket, credentials, s3_server

__all__ = ["bucket", "credentials", "s3_server"]  # fixtures

# Tests run side by side with other work, and one thread adds in one order.
torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    """Forget what was remembered."""
    shutil.rmtree(os.environ["RAYKD_REMEMBERED"], ignore_errors=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def store_with_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data]:
    """The root of a store with the images of `digits`, and their recipe."""
    store = Store(tmp_path_factory.mktemp("digits") / "store")
    data = Data(name="digits", limit=200, augment=Augment(pad=1, flip=True))
    return store.root, read(store, data, None)


@pytest.fixture
def digits(store: Store, store_with_digits: tuple[Path, Data]) -> Data:
    """200 real images of 8 x 8 pixels to train on, 359 to test on, in `store`."""
    root, data = store_with_digits
    shutil.copytree(root, store.root, dirs_exist_ok=True)
    return data
