"""Which teacher checkpoint supervises which student epoch, and how checkpoints are chosen."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raykd.teachers.anchor_route import Route, equal_by_count, equal_by_interval, farthest, hardness
from tests.each import each


def test_an_anchor_supervises_until_the_next_one_starts():
    route = Route(anchors=(60, 120, 240), starts=(0, 80, 160))
    assert [route.at(epoch) for epoch in (0, 79, 80, 159, 160, 400)] == [60, 60, 120, 120, 240, 240]


@each(
    ("anchors", "starts", "message"),
    [
        ((1, 2), (0,), "2 anchors need as many starts, got 1"),
        ((2, 1), (0, 5), "anchors must rise"),
        ((1, 2), (0, 0), "starts must rise"),
        ((1,), (3,), "starts at student epoch 0"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(anchors, starts, message):
    with pytest.raises(ValidationError, match=message):
        Route(anchors=anchors, starts=starts)


# Equal intervals


@given(every=st.integers(1, 12), count=st.integers(1, 12), rest=st.integers(0, 11))
def test_equal_intervals_are_the_multiples_and_the_last_epoch(every, count, rest):
    last = every * count + rest % every
    saved = (*range(every, last, every), last)
    for interval in range(every, last + 2 * every, every):
        anchors = equal_by_interval(saved, interval)
        assert anchors == tuple(e for e in saved if e % interval == 0 or e == last)
        assert len(anchors) == math.ceil(last / interval)


def test_the_teacher_of_the_paper_gives_24_anchors_at_every_tenth_of_240_epochs():
    saved = tuple(range(10, 241, 10))
    assert equal_by_interval(saved, 10) == saved
    assert equal_by_interval(saved, 100) == (100, 200, 240)


def test_an_interval_that_was_not_saved_is_refused_with_what_was():
    with pytest.raises(ValueError, match=r"epoch 3, and saved are \[2, 4, 5\].*save_every"):
        equal_by_interval((2, 4, 5), 3)


SAVED = st.sets(st.integers(1, 300), min_size=1, max_size=30).map(lambda s: tuple(sorted(s)))


@given(saved=SAVED, data=st.data())
def test_as_many_anchors_as_asked_for_rise_to_the_last_saved_epoch(saved, data):
    count = data.draw(st.integers(1, len(saved)))
    anchors = equal_by_count(saved, count)
    assert len(anchors) == count
    assert list(anchors) == sorted(set(anchors))
    assert set(anchors) <= set(saved)
    assert anchors[-1] == saved[-1]


@given(every=st.integers(1, 10), count=st.integers(1, 8), times=st.integers(1, 6))
def test_a_count_that_divides_the_epochs_is_an_interval(every, count, times):
    saved = tuple(range(every, every * count * times + 1, every))
    assert equal_by_count(saved, count) == equal_by_interval(saved, every * times)


@given(saved=SAVED)
def test_as_many_anchors_as_were_saved_are_all_of_them(saved):
    assert equal_by_count(saved, len(saved)) == saved


@each(
    ("saved", "count", "anchors"),
    [
        ((10, 20, 30, 40, 50), 2, (30, 50)),  # 25 lies between two, of which the later one
        ((10, 20, 30, 40), 3, (10, 30, 40)),  # 13.3 and 26.7
        ((1, 2, 3, 100), 3, (2, 3, 100)),  # 33.3 is next to 3, which the second one is left
        ((90, 95, 100), 3, (90, 95, 100)),
    ],
)
def test_an_anchor_is_the_saved_epoch_next_to_its_share_of_all(saved, count, anchors):
    assert equal_by_count(saved, count) == anchors


def test_more_anchors_than_were_saved_are_refused():
    with pytest.raises(ValueError, match=r"3 anchors .* saves 2, \[5, 9\]; lower teacher.save_ev"):
        equal_by_count((5, 9), 3)


# The greedy search

DISTANCE = st.one_of(st.just(0.0), st.floats(0, 2e-8), st.floats(1e-3, 1e3))


@given(distance=DISTANCE)
def test_every_checkpoint_is_exactly_as_hard_as_itself(distance):
    assert hardness(distance, distance) == 1


def test_once_a_checkpoint_is_reached_every_other_one_is_infinitely_harder():
    for current, other, expected in [
        (0.5, 0.75, 1.5),
        (0.5, 0.25, 0.5),
        (0.5, 0.0, 0.0),
        (0.0, 0.5, math.inf),
        (9.9e-9, 1e-8, math.inf),
        (9.9e-9, 9.9e-9, 1),
        (0.0, 9.9e-9, 1),
        (1e-8, 2e-8, 2),
    ]:
        assert hardness(current, other) == pytest.approx(expected, rel=1e-15)


def walked(distances, threshold):
    """The anchors of a search where distances[i, j] is that of the student after i from j."""
    last = max(j for _, j in distances)
    anchors = [min(j for _, j in distances)]
    while anchors[-1] != last:
        i = anchors[-1]
        ratios = {j: hardness(distances[i, i], distances[i, j]) for k, j in distances if k == i}
        anchors.append(farthest(ratios, i, threshold))
    return anchors


def greedy(distances, threshold):
    """Next anchor by the specification: max{j > i : r_ij <= threshold}, or else i + 1."""
    saved = sorted({j for _, j in distances})
    place, anchors = 0, [saved[0]]
    while place < len(saved) - 1:
        here, chosen = saved[place], place + 1
        for candidate in range(place + 1, len(saved)):
            mine, theirs = distances[here, here], distances[here, saved[candidate]]
            reached = mine < 1e-8 and theirs < 1e-8
            r = 1.0 if reached else theirs / mine if mine >= 1e-8 else math.inf
            if r <= threshold:
                chosen = candidate
        place = chosen
        anchors.append(saved[place])
    return anchors


@st.composite
def teachings(draw):
    """Made-up distances between the students and the checkpoints of a route."""
    saved = sorted(draw(st.sets(st.integers(1, 240), min_size=1, max_size=8)))
    return {(i, j): draw(DISTANCE) for i in saved for j in saved if j >= i}


@settings(max_examples=100)
@given(distances=teachings(), threshold=st.floats(0.01, 10))
def test_the_greedy_search_goes_where_the_specification_says(distances, threshold):
    anchors = walked(distances, threshold)
    assert anchors == greedy(distances, threshold)
    assert anchors == sorted(set(anchors))
    assert anchors[0] == min(j for _, j in distances)
    assert anchors[-1] == max(j for _, j in distances)


@each(
    ("ratios", "current"),
    [
        ({1: 1.0, 2: 1.2, 3: 1.6, 4: 1.7}, 1),  # exactly the threshold
        ({1: 1.0, 2: 9.0, 3: 1.5, 4: 9.0}, 1),  # behind a harder one
        ({1: 0.1, 2: 1.0, 3: 5.0, 4: 6.0}, 2),  # the next one, where none is within it
    ],
)
def test_the_last_checkpoint_within_the_threshold_comes_next(ratios, current):
    assert farthest(ratios, current, 1.6) == 3


def test_after_the_last_checkpoint_there_is_none():
    with pytest.raises(ValueError, match="no checkpoint after epoch 4"):
        farthest({3: 1.0, 4: 1.0}, 4, 1.6)
