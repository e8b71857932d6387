"""Small real networks, trained once for the tests of this folder."""

import pytest

from raykd.methods import METHODS
from raykd.storage.store import Store
from tests.small import prepare, student_run, trained

TIMM, TORCHVISION = "timm/test_resnet", "torchvision/shufflenet_v2_x0_5"


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A store with a teacher, its caches, and whatever students the tests train."""
    return Store(tmp_path_factory.mktemp("exported") / "store")


@pytest.fixture(scope="session")
def student(place):
    """A function from a method's name and a network's to a finished student of `place`."""

    def make(method="kd", model="resnet8"):
        chosen = METHODS[method]()
        if method == "sakd":
            chosen = METHODS["sakd"](base=METHODS["skd"]())
        alone = method == "label_only"
        run = student_run(place, chosen, model=model, **({"teacher": None} if alone else {}))
        prepare(place, run)
        trained(place, run)
        return run

    return make


@pytest.fixture(scope="session")
def teacher(place, student):
    """The teacher of the students."""
    return student().teacher
