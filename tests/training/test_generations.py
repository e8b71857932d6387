"""Students that go on where others ended: views, order and schedules go on, too."""

import pytest

from raykd.data.transforms.augment import Augment
from raykd.methods.kd import KD
from raykd.methods.skd import SKD
from raykd.recipes import Optim
from raykd.storage.store import Store
from tests.small import digits, prepare, student_run, teacher_run, trained
from tests.tiers import slow_but

PLAIN = Optim(epochs=4, batch=32, schedule="constant", momentum=0.0)  # nothing to remember


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.mark.slow
def test_views_and_their_number_go_on(store):
    data = digits(store, limit=96, augment=Augment(pad=2, flip=True))
    whole = student_run(store, data=data, optim=Optim(epochs=12, batch=32))
    later = whole.model_copy(update={"first_epoch": 8, "optim": Optim(epochs=4, batch=32)})
    assert [later.view_at(e) for e in range(4)] == [whole.view_at(e) for e in range(8, 12)]
    few = later.model_copy(update={"views": 3})
    assert [few.view_at(e) for e in range(4)] == [2, 0, 1, 2]


WEIGHTED = KD(weight=((0, 0.9), (3, 0.1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", slow_but([WEIGHTED, SKD(radius=2.0)], [WEIGHTED]), ids=lambda m: m.name
)
def test_two_halves_without_momentum_are_the_whole_bit_for_bit(store, method):
    weight = ((0, 0.5), (2, 0.2))
    teacher = teacher_run(store, data=digits(store, limit=96))
    changes = {"teacher": teacher, "optim": PLAIN, "views": 3, "label_weight": weight}
    whole = student_run(store, method, **changes)
    half = whole.model_copy(update={"optim": PLAIN.model_copy(update={"epochs": 2})})
    rest = half.model_copy(update={"after": half, "first_epoch": 2})
    prepare(store, whole, half, rest)
    assert trained(store, half) != trained(store, whole)
    assert trained(store, rest) == trained(store, whole)
