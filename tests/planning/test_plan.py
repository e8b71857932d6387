"""Plan of a set of students: each artefact once, and nothing that no epoch reads."""

from collections import Counter

import pytest

from raykd.core.types import CACHEABLE, Signal
from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.skd import SKD
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.recipes import RCO, Optim, OutputsRun, SearchedStudent, StudentRun, TeacherRun
from raykd.recipes.rco import along
from raykd.teachers.anchor_route import Route
from raykd.training.route_results import measures

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
    assert train.run == OutputsRun(teacher=TEACHER, anchor=240, data=DATA)
    (test,) = [job for job in work.caches if job.run.split == "test"]
    assert test == CacheJob(
        OutputsRun(teacher=TEACHER, anchor=240, data=DATA.test(), split="test"), (0,)
    )


def test_only_the_views_that_epochs_go_through_are_cached():
    plain = DATA.model_copy(update={"augment": Augment()})
    for changes, views in (
        ({}, 162),  # all views of a padded and flipped image
        ({"data": plain}, 1),
        ({"views": 80}, 80),
        ({"views": 500, "optim": Optim(epochs=300)}, 300),
    ):
        (train,) = train_caches(plan([with_(**changes)]))
        assert train.views == tuple(range(views))


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


def test_what_changes_the_teacher_s_answers_needs_a_cache_of_its_own():
    others = [
        with_(teacher=TEACHER.model_copy(update={"seed": 1})),
        with_(data=DATA.model_copy(update={"seed": 1})),
        with_(teacher_precision="bfloat16"),
    ]
    assert len(train_caches(plan([STUDENT, *others]))) == 4


def test_a_cache_holds_the_union_of_the_views_that_its_students_read():
    short = with_(views=3, optim=Optim(epochs=10))
    long = with_(views=5, optim=Optim(epochs=10))
    (train,) = train_caches(plan([short, long]))
    assert train.views == (0, 1, 2, 3, 4)


def test_only_the_pairs_of_anchor_and_view_that_an_epoch_reads_are_cached():
    route = Route(anchors=(60, 120, 240), starts=(0, 80, 160))
    run = with_(route=route)
    read = Counter((route.at(epoch), epoch % run.view_count()) for epoch in range(240))
    work = plan([run])
    planned = [(job.run.anchor, view) for job in train_caches(work) for view in job.views]
    assert sorted(planned) == sorted(read)
    assert len(planned) <= 240, "no more teacher forwards than epochs"
    tests = [job for job in work.caches if job.run.split == "test"]
    assert [(job.run.anchor, job.views) for job in tests] == [(240, (0,))], "the last anchor's"


def test_students_with_the_same_test_images_share_their_cache():
    small = DATA.model_copy(update={"limit": 100, "augment": Augment()})
    work = plan([STUDENT, with_(data=small)])
    assert len([job for job in work.caches if job.run.split == "test"]) == 1


def test_a_method_is_given_a_cache_of_exactly_what_it_reads():
    for name in METHODS:
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


def test_what_runs_the_teacher_or_has_none_needs_no_cache_of_the_training_images():
    for changes in ({"source": "live"}, {"method": LabelOnly()}):
        work = plan([with_(**changes)])
        assert work.teachers == (TEACHER,)
        assert [job.run.split for job in work.caches] == ["test"]


# Routes in stages, searches and assistants


def pairs(work: Plan) -> list[tuple[str, int, int]]:
    """Split, anchor and view of every cached pass."""
    return [(job.run.split, job.run.anchor, view) for job in work.caches for view in job.views]


def read_by(run: StudentRun) -> set[tuple[str, int, int]]:
    """Split, anchor and view that each epoch of a cached student and its stages reads."""
    found = set()
    for stage in run.stages():
        count = stage.data.augment.views() if stage.views == "all" else stage.views
        for epoch in range(stage.optim.epochs):
            anchor = stage.route.at(epoch) if stage.route else 240
            found.add(("train", anchor, epoch % min(count, stage.optim.epochs)))
        found.add(("test", anchor, 0))  # the last epoch's teacher is compared with
    return found


ROUTE = (60, 120, 180, 240)


@pytest.mark.parametrize(
    "anchors",
    [
        pytest.param((10, 240), id="2"),
        pytest.param(ROUTE, id="4", marks=pytest.mark.slow),
        pytest.param(tuple(range(10, 241, 10)), id="24", marks=pytest.mark.slow),
    ],
)
def test_a_chosen_route_is_planned_with_exactly_what_its_epochs_read(anchors):
    for views in ["all", 1, 7, 500]:
        for stages in ["one_stage", "multi_stage"]:
            run = along(with_(views=views), anchors, stages)
            work = plan([run])
            planned = pairs(work)
            assert len(planned) == len(set(planned))
            assert set(planned) == read_by(run)
            train = [(anchor, view) for split, anchor, view in planned if split == "train"]
            assert len(train) <= 240 * len(run.stages()), "no more teacher forwards than epochs"
            assert work.teachers == (TEACHER,)
            assert work.students == run.stages()


def test_a_route_is_planned_by_what_the_method_reads_of_the_teacher():
    for stages in ("one_stage", "multi_stage"):
        run = along(with_(method=METHODS["mimic_embedding"](), views=7), ROUTE, stages)
        work = plan([run])
        assert set(pairs(work)) == read_by(run)
        assert all(job.run.embedding for job in train_caches(work))
        live = along(with_(method=METHODS["fitnet"]()), ROUTE, stages)
        assert set(pairs(plan([live]))) == {pair for pair in read_by(live) if pair[0] == "test"}


def test_what_is_behind_a_finished_stage_is_not_asked_for_again():
    run = along(with_(views=3), ROUTE, "multi_stage")
    first, second, *_ = run.stages()
    work = plan([run], lambda student: student in (first, second))
    assert work.students == run.stages()[2:]
    assert {anchor for _, anchor, _ in pairs(work)} == {180, 240}
    assert plan([run], lambda student: student == run) == Plan((), (), (), ())


def test_stages_are_done_one_after_the_other_and_other_students_at_once():
    run, other = along(with_(), (60, 120, 240), "multi_stage"), with_(seed=1)
    layers = plan([run, other]).layers()
    first, second, third = run.stages()
    assert [layer.students for layer in layers] == [(first, other), (second,), (third,)]
    assert [layer.teachers for layer in layers] == [(TEACHER,), (), ()]
    assert [len(layer.caches) for layer in layers] == [6, 0, 0], "a teacher's can be made at once"


def test_a_search_measures_by_one_view_of_what_is_held_out_at_every_checkpoint():
    data = DATA.model_copy(update={"validation": 0.1, "limit": 1000})
    teacher = TEACHER.model_copy(update={"data": data})
    sought = RCO(select="greedy").students(with_(data=data, teacher=teacher))
    assert isinstance(sought, SearchedStudent)
    first = sought.search.stage((10,))
    work = plan([first], caches=measures(sought.search))
    beside = {("validation", anchor, 0) for anchor in range(10, 241, 10)}
    assert set(pairs(work)) == {("train", 10, view) for view in range(162)} | beside | {
        ("test", 10, 0)
    }
    assert len(pairs(work)) == 162 + 24 + 1
    held = [job.run for job in work.caches if job.run.split == "validation"]
    assert {run.data for run in held} == {data.held_out()}


def test_a_search_by_a_loss_of_the_live_teacher_measures_without_a_cache():
    data = DATA.model_copy(update={"validation": 0.1})
    teacher = TEACHER.model_copy(update={"data": data})
    run = with_(data=data, teacher=teacher, method=METHODS["fitnet"]())
    sought = RCO(select="greedy").students(run)
    assert isinstance(sought, SearchedStudent)
    assert measures(sought.search) == []


def chain(*models: str, **changes) -> StudentRun:
    """The student below some assistants, of which the first learns from the teacher."""
    teacher: TeacherRun | StudentRun = TEACHER
    for model in models:
        teacher = with_(model=model, teacher=teacher)
    return with_(teacher=teacher, **changes)


def test_a_chain_of_assistants_is_made_from_the_teacher_down():
    run = chain("resnet44", "resnet32", views=3)
    second = run.teacher
    assert isinstance(second, StudentRun)
    first = second.teacher
    assert isinstance(first, StudentRun)
    work = plan([run])
    assert work.teachers == (TEACHER,)
    assert work.students == (first, second, run)
    layers = work.layers()
    assert [layer.students for layer in layers] == [(first,), (second,), (run,)]
    teachers = [{job.run.teacher for job in layer.caches} for layer in layers]
    assert teachers == [{TEACHER}, {first}, {second}]
    assert [job.run.anchor for job in work.caches] == [240] * 6


def test_assistants_are_shared_by_the_students_below_them():
    runs = [chain("resnet44", "resnet32", seed=seed) for seed in range(3)]
    runs.append(chain("resnet44", model="resnet14"))
    work = plan(runs)
    assert [student.model for student in work.students] == [
        "resnet44",
        "resnet32",
        *["resnet20"] * 3,
        "resnet14",
    ]
    assert len(train_caches(work)) == 3, "of the teacher and of both assistants"


def test_a_finished_assistant_needs_neither_its_teacher_nor_its_caches():
    run = chain("resnet44")
    work = plan([run], lambda student: student == run.teacher)
    assert work.students == (run,)
    assert work.teachers == ()
    assert {job.run.teacher for job in work.caches} == {run.teacher}


def test_a_route_is_walked_below_an_assistant_of_the_same_teacher():
    run = along(with_(), (120, 240), "multi_stage")
    both = plan([run, chain("resnet44")])
    assert [len(layer.students) for layer in both.layers()] == [2, 2]
    assert len([job for job in both.caches if job.run.anchor == 240]) == 4
