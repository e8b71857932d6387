"""Route constrained optimisation as recipes: which students a route consists of."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raykd.core.record import fingerprint
from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.methods import METHODS
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.recipes import RCO, Optim, Search, SearchedStudent, StudentRun, TeacherRun
from raykd.recipes.rco import along
from raykd.teachers.anchor_route import Route
from tests.each import each

DATA = Data(name="cifar10", augment=Augment(pad=4), validation=0.1, digest="0" * 20, classes=10)
TEACHER = TeacherRun(model="resnet56", data=DATA, optim=Optim(epochs=240))
STUDENT = StudentRun(model="resnet20", data=DATA, teacher=TEACHER, method=KD())
SAVED = tuple(range(10, 241, 10))


def with_(**changes) -> StudentRun:
    """The student with other values, checked like any recipe."""
    return StudentRun(**(dict(STUDENT) | changes))


def supervisors(run: StudentRun) -> list[int]:
    """The anchor of every epoch."""
    return [run.anchor_at(epoch) for epoch in range(run.optim.epochs)]


SAVED_ONCE = with_(teacher=TEACHER.model_copy(update={"save_every": 240}))
GIVEN = with_(teacher=TEACHER.model_copy(update={"weights": "sha256:" + "0" * 64 + ".pt"}))


def test_a_route_of_one_anchor_is_the_plain_student_itself():
    for run, choice in [
        (STUDENT, {"anchors": 1}),
        (STUDENT, {"interval": 240}),
        (STUDENT, {"interval": 1000}),
        (STUDENT, {"select": "greedy", "anchors": 1}),
        (SAVED_ONCE, {"anchors": 1}),
        (SAVED_ONCE, {"interval": 240}),
        (SAVED_ONCE, {"select": "greedy"}),
        (GIVEN, {"anchors": 1}),
        (GIVEN, {"interval": 10}),
        (GIVEN, {"select": "greedy"}),
    ]:
        for stages in ["multi_stage", "one_stage"]:
            found = RCO(stages=stages, **choice).students(run)
            assert found == run
            assert fingerprint(found) == fingerprint(run)


def test_a_student_that_reads_nothing_of_a_teacher_needs_no_route():
    for choice in [{}, {"select": "greedy"}, {"interval": 7}]:
        for name in ["label_only", "ab", "fsp"]:
            run = with_(method=METHODS[name]())
            assert RCO(**choice).students(run) == run


def test_four_anchors_are_chosen_where_nothing_is_said():
    found = RCO().students(STUDENT)
    assert [set(supervisors(stage)) for stage in found.stages()] == [{60}, {120}, {180}, {240}]


def test_every_stage_has_the_whole_schedule_and_goes_on_after_the_one_before():
    found = RCO(interval=100).students(STUDENT)
    assert isinstance(found, StudentRun)
    first, second, third = found.stages()
    assert (first.after, second.after, third.after) == (None, first, second)
    assert [stage.route for stage in found.stages()] == [
        Route(anchors=(100,)),
        Route(anchors=(200,)),
        None,
    ]
    plain = {"after": None, "route": None}
    assert all(stage.model_copy(update=plain) == STUDENT for stage in found.stages())
    seen = [supervisors(stage) for stage in found.stages()]
    assert seen == [[100] * 240, [200] * 240, [240] * 240]


def test_routes_that_begin_alike_share_their_first_stages():
    first = along(STUDENT, (10, 40, 240), "multi_stage").stages()
    second = along(STUDENT, (10, 40, 120, 240), "multi_stage").stages()
    assert [a == b for a, b in zip(first, second, strict=False)] == [True, True, False]


def test_a_chain_of_stages_is_read_back_as_it_was_written():
    found = along(STUDENT, (10, 40, 240), "multi_stage")
    assert StudentRun.read(found.plain()) == found
    assert fingerprint(StudentRun.read(found.plain())) == fingerprint(found)


@given(
    epochs=st.integers(1, 300),
    chosen=st.sets(st.sampled_from(SAVED[:-1]), max_size=23).map(sorted),
)
def test_one_stage_has_its_epochs_and_no_more_in_equal_shares(epochs, chosen):
    anchors = (*chosen, 240)
    optim = Optim(epochs=epochs)
    run = along(with_(optim=optim), anchors, "one_stage")
    assert run.stages() == (run,)
    assert run.optim == optim
    seen = supervisors(run)
    assert seen == sorted(seen)
    assert seen[-1] == 240, "the trained teacher has the last word"
    shares = Counter(seen)
    assert sum(shares.values()) == epochs
    assert len(shares) == min(len(anchors), epochs), "an epoch each, while there are epochs"
    assert set(shares) <= set(anchors)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_one_stage_of_240_epochs_changes_the_anchor_every_60():
    run = RCO(stages="one_stage").students(STUDENT)
    assert run.route == Route(anchors=(60, 120, 180, 240), starts=(0, 60, 120, 180))


def test_more_anchors_than_epochs_are_thinned_out_evenly():
    run = along(with_(optim=Optim(epochs=3)), (10, 20, 30, 40, 50, 240), "one_stage")
    assert run.route == Route(anchors=(20, 40, 240), starts=(0, 1, 2))


# The greedy search


def searched(run: StudentRun = STUDENT, **choice) -> SearchedStudent:
    found = RCO(select="greedy", **choice).students(run)
    assert isinstance(found, SearchedStudent)
    return found


def test_a_search_goes_through_all_that_was_saved():
    assert searched().search.candidates() == SAVED


def test_hint_and_mimic_learning_measure_by_their_loss_and_others_by_divergence():
    for name, measure in [
        ("kd", "kl"),
        ("skd", "kl"),
        ("crd", "kl"),
        ("fitnet", "loss"),
        ("mimic_embedding", "loss"),
        ("mimic_logits", "loss"),
    ]:
        assert searched(with_(method=METHODS[name]())).search.measure == measure
        assert searched(with_(method=METHODS[name]()), measure="kl").search.measure == "kl"


def test_what_was_found_is_walked_in_the_stages_that_were_asked_for():
    for stages in ["multi_stage", "one_stage"]:
        sought = searched(stages=stages)
        assert sought.along((10, 40, 240)) == along(STUDENT, (10, 40, 240), stages)


def test_the_stages_of_a_search_are_those_of_the_student_that_it_finds():
    sought = searched()
    final = sought.along((10, 40, 240))
    assert final == sought.search.stage((10, 40, 240))
    assert final.stages()[:2] == sought.search.stage((10, 40)).stages()


def test_what_a_search_costs_to_repeat_is_in_its_fingerprint():
    searches = [
        searched().search,
        searched(threshold=2.0).search,
        searched(temperature=2.0).search,
        searched(anchors=3).search,
        searched(measure="loss").search,
        searched(with_(seed=1)).search,
    ]
    assert len({fingerprint(search) for search in searches}) == len(searches)
    one_stage = searched(stages="one_stage").search
    assert fingerprint(one_stage) == fingerprint(searched().search), "both walk in stages"


def test_a_search_without_images_that_are_held_out_is_refused():
    data = DATA.model_copy(update={"validation": None})
    run = with_(data=data, teacher=TEACHER.model_copy(update={"data": data}))
    with pytest.raises(ValidationError, match=r"nothing is trained on; add run\.data\.validation"):
        RCO(select="greedy").students(run)


def test_a_loss_of_several_looks_is_no_measure():
    for method in [METHODS["mlkd"](), METHODS["stkd"](teacher="mixed_output")]:
        with pytest.raises(ValidationError, match=r"several looks .* use rco\.measure: kl"):
            searched(with_(method=method), measure="loss")


# What is refused


def test_a_route_that_does_not_suit_the_student_is_refused():
    for run, choice, message in [
        (STUDENT, {"anchors": 25}, r"25 anchors are asked for and the teacher saves 24"),
        (STUDENT, {"interval": 15}, r"the teacher's epoch 15.*multiple of teacher.save_every"),
        (with_(route=Route(anchors=(240,))), {}, r"leave run.route out"),
        (with_(method=METHODS["sakd"](mode="both")), {}, r"trains the teacher"),
    ]:
        with pytest.raises(ValueError, match=message):
            RCO(**choice).students(run)


def test_a_choice_that_contradicts_itself_is_refused():
    for choice, message in [
        ({"interval": 10, "anchors": 2}, "in place of anchors"),
        ({"interval": 10, "select": "greedy"}, "interval goes with select: equal"),
        ({"anchors": 0}, "greater than or equal to 1"),
        ({"threshold": 0.0}, "greater than 0"),
    ]:
        with pytest.raises(ValidationError, match=message):
            RCO(**choice)


# Assistants and the stages before


def test_a_student_can_be_a_teacher_at_its_last_epoch_alone():
    assistant = with_(model="resnet32", optim=Optim(epochs=100))
    run = with_(teacher=assistant)
    assert supervisors(run) == [100] * 240
    assert StudentRun.read(run.plain()) == run
    with pytest.raises(ValidationError, match="anchor 50 is not among the teacher's saved epochs"):
        with_(teacher=assistant, route=Route(anchors=(50,)))


def test_a_student_that_answers_with_parts_of_its_teacher_can_teach_no_one():
    with pytest.raises(ValidationError, match="'simkd' cannot be used without parts of its teach"):
        with_(teacher=with_(model="resnet32", method=METHODS["simkd"]()))


def test_a_student_goes_on_after_none_but_its_like():
    for change, message in [
        ({"model": "resnet8"}, "whose model is 'resnet8', and its own is 'resnet20'"),
        ({"data": DATA.model_copy(update={"digest": "1" * 20})}, "whose data.digest is '1111"),
        ({"data": DATA.model_copy(update={"classes": 9})}, "whose data.classes is 9, and its own"),
    ]:
        teacher = TEACHER.model_copy(update={k: v for k, v in change.items() if k == "data"})
        before = StudentRun(**(dict(STUDENT) | change | {"teacher": teacher}))
        with pytest.raises(ValidationError, match=message):
            with_(after=before)


def test_a_student_may_go_on_after_one_of_another_method_and_teacher():
    before = with_(method=LabelOnly(), teacher=None)
    assert with_(after=before).stages() == (before, with_(after=before))


def test_a_search_is_read_back_as_it_was_written():
    search = searched(anchors=3, threshold=1.25).search
    assert Search.read(search.plain()) == search


def test_a_search_that_cannot_end_is_refused_before_it_begins():
    for method, measure in [
        (METHODS["sakd"](mode="both"), "kl"),
        (METHODS["crd"](), "loss"),
        (METHODS["combine"](), "loss"),  # crd + kd
    ]:
        with pytest.raises(ValueError, match=r"trains the teacher|remembers"):
            searched(with_(method=method), measure=measure)


def test_a_search_whose_teacher_learned_from_the_held_out_images_is_refused():
    for change in [{"validation": None}, {"validation": 0.2}, {"seed": 1}]:
        teacher = TEACHER.model_copy(update={"data": DATA.model_copy(update=change)})
        with pytest.raises(ValueError, match="validation"):
            searched(with_(teacher=teacher))


@each("choice", [{"anchors": 2}, {"stages": "one_stage"}, {"select": "greedy"}])
def test_a_route_of_a_student_that_goes_on_after_another_begins_there_or_is_refused(choice):
    before = with_(method=LabelOnly(), teacher=None)
    run = with_(after=before)
    try:
        found = RCO(**choice).students(run)
    except ValueError:
        return
    first = found.search.stage((10,)) if isinstance(found, SearchedStudent) else found.stages()[0]
    assert before in first.stages()


def test_a_route_through_an_assistant_is_refused():
    for choice in [{}, {"interval": 10}, {"select": "greedy"}]:
        run = with_(teacher=with_(model="resnet32"))
        with pytest.raises(ValueError, match="assistant"):
            RCO(**choice).students(run)


# The relative hardness


def test_a_relative_change_is_a_ratio_less_one():
    for choice, ratio in [
        ({}, 1.6),
        ({"threshold": 2.5}, 2.5),
        ({"hardness": "ratio"}, 1.6),
        ({"hardness": "relative_change"}, 1.8),
        ({"hardness": "relative_change", "threshold": 0.25}, 1.25),
    ]:
        found = RCO(select="greedy", **choice).students(STUDENT)
        assert isinstance(found, SearchedStudent)
        assert found.search.threshold == pytest.approx(ratio, rel=1e-12)


def test_both_forms_of_one_threshold_are_one_search():
    ratio = RCO(select="greedy", threshold=1.5).students(STUDENT)
    change = RCO(select="greedy", hardness="relative_change", threshold=0.5).students(STUDENT)
    assert ratio == change
