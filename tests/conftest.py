"""What every test may ask for, and how torch and matplotlib behave under test."""

import os
from pathlib import Path

# Before matplotlib is imported: no test opens a window, whatever the machine prefers.
os.environ["MPLBACKEND"] = "Agg"

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def digits(store: Store) -> Data:
    """200 real images of 8 x 8 pixels to train on, 359 to test on, read into `store`."""
    return read(store, Data(name="digits", limit=200, augment=Augment(pad=1, flip=True)), None)
