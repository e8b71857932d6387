"""What a set of students needs: each thing once, and nothing that no epoch reads."""

from collections import Counter

import pytest

from raykd.data.augment import Augment
from raykd.data.images import Data
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.skd import SKD
from raykd.plan import CacheJob, Plan, plan
from raykd.recipes import LogitsRun, Optim, StudentRun, TeacherRun
from raykd.teachers.route import Route
from raykd.types import CACHEABLE, Signal

DATA = Data(name="cifar10", augment=Augment(pad=4, flip=True), digest="0" * 20, classes=10)
TEACHER = TeacherRun(model="resnet56", data=DATA)
STUDENT = StudentRun(model="resnet20", data=DATA, teacher=TEACHER, method=KD())


def with_(**changes) -> StudentRun:
    """The student with other values, checked like any recipe."""
    return StudentRun(**(dict(STUDENT) | changes))


def train_caches(work: Plan) -> list[CacheJob]:
    return [job for job in work.caches if job.run.split == "train"]


def test_nothing_needs_nothing():
    assert plan([]) == Plan((), (), (), ())


def test_one_student_needs_its_teacher_and_the_caches_of_both_splits():
    work = plan([STUDENT])
    assert work.students == (STUDENT,)
    assert work.teachers == (TEACHER,)
    (train,) = train_caches(work)
    assert train.run == LogitsRun(teacher=TEACHER, anchor=240, data=DATA)
    (test,) = [job for job in work.caches if job.run.split == "test"]
    assert test == CacheJob(
        LogitsRun(teacher=TEACHER, anchor=240, data=DATA.test(), split="test"), (0,)
    )


def test_all_views_of_a_padded_and_flipped_image_are_162():
    (train,) = train_caches(plan([STUDENT]))
    assert train.views == tuple(range(162))
    assert STUDENT.view_count() == 162


@pytest.mark.parametrize(
    ("views", "epochs", "expected"),
    [("all", 100, 100), (80, 240, 80), (1, 240, 1), (500, 300, 300)],
)
def test_only_the_views_that_epochs_go_through_are_cached(views, epochs, expected):
    run = with_(views=views, optim=Optim(epochs=epochs))
    (train,) = train_caches(plan([run]))
    assert train.views == tuple(range(expected))


def test_unaugmented_images_have_one_view():
    data = DATA.model_copy(update={"augment": Augment()})
    (train,) = train_caches(plan([with_(data=data)]))
    assert train.views == (0,)


def test_seeds_methods_and_networks_share_teacher_and_cache():
    runs = [
        with_(seed=seed, method=method, model=model)
        for seed in range(3)
        for method in (KD(), KD(temperature=2.0), SKD())
        for model in ("resnet8", "resnet20")
    ]
    work = plan(runs)
    assert work.students == tuple(runs)
    assert work.teachers == (TEACHER,)
    assert work.caches == plan([STUDENT]).caches


def test_embeddings_and_logits_are_asked_of_the_teacher_once():
    runs = [with_(), with_(method=METHODS["pkt"](), views=3)]
    (train,) = train_caches(plan(runs))
    assert train.run == plan([runs[1]]).caches[-1].run
    assert train.run.embedding
    assert train.views == plan([runs[0]]).caches[-1].views


def test_a_student_that_is_asked_for_twice_is_planned_once_in_the_order_of_asking():
    other = with_(seed=1)
    again = StudentRun.read(STUDENT.plain())
    assert plan([STUDENT, other, again, other]).students == (STUDENT, other)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": TEACHER.model_copy(update={"seed": 1})},
        {"data": DATA.model_copy(update={"seed": 1})},
        {"teacher_precision": "bfloat16"},
    ],
    ids=["another teacher", "other views", "another precision"],
)
def test_what_changes_the_teacher_s_answers_needs_a_cache_of_its_own(change):
    work = plan([STUDENT, with_(**change)])
    assert len(train_caches(work)) == 2


def test_a_cache_holds_the_union_of_the_views_that_its_students_read():
    short = with_(views=3, optim=Optim(epochs=10))
    long = with_(views=5, optim=Optim(epochs=10))
    (train,) = train_caches(plan([short, long]))
    assert train.views == (0, 1, 2, 3, 4)


ROUTES = [
    (Route(anchors=(60, 120, 240), starts=(0, 80, 160)), "all"),
    (Route(anchors=(10, 240), starts=(0, 7)), 80),
    (Route(anchors=(100, 200), starts=(0, 239)), 162),
]


@pytest.mark.parametrize(("route", "views"), ROUTES)
def test_only_the_pairs_of_anchor_and_view_that_an_epoch_reads_are_cached(route, views):
    run = with_(route=route, views=views)
    read = Counter((route.at(epoch), epoch % run.view_count()) for epoch in range(240))
    planned = [(job.run.anchor, view) for job in train_caches(plan([run])) for view in job.views]
    assert sorted(planned) == sorted(read)
    assert len(planned) <= 240, "no more teacher forwards than epochs"


def test_the_test_images_are_answered_by_the_last_anchor_alone():
    route, _ = ROUTES[0]
    tests = [job for job in plan([with_(route=route)]).caches if job.run.split == "test"]
    assert [(job.run.anchor, job.views) for job in tests] == [(240, (0,))]


def test_students_with_the_same_test_images_share_their_cache():
    small = DATA.model_copy(update={"limit": 100, "augment": Augment()})
    work = plan([STUDENT, with_(data=small)])
    assert len([job for job in work.caches if job.run.split == "test"]) == 1


def test_a_live_teacher_needs_no_cache_of_the_training_images():
    work = plan([with_(source="live")])
    assert train_caches(work) == []
    assert work.teachers == (TEACHER,)
    assert [job.run.split for job in work.caches] == ["test"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_given_a_cache_of_exactly_what_it_reads(name):
    method = METHODS[name]()
    caches = train_caches(plan([with_(method=method)]))
    if method.needs() & ~CACHEABLE or not method.needs():
        assert caches == [], "it runs the teacher itself, or has no use for it"
    else:
        assert len(caches) == len(method.looks().teacher), "one for each look at the samples"
        for train in caches:
            assert not method.needs() & ~train.run.signals()
            assert train.run.embedding == (Signal.EMBEDDING in method.needs())


def test_a_student_without_a_teacher_needs_nothing_but_itself():
    alone = StudentRun(model="resnet20", data=DATA)
    assert plan([alone]) == Plan((), (), (), (alone,))


def test_a_baseline_beside_a_teacher_is_compared_with_it_on_the_test_images():
    work = plan([with_(method=LabelOnly())])
    assert [job.run.split for job in work.caches] == ["test"]
