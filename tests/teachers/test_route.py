"""Which teacher checkpoint supervises which student epoch."""

import pytest
from pydantic import ValidationError

from raykd.teachers.route import Route


def test_an_anchor_supervises_until_the_next_one_starts():
    route = Route(anchors=(60, 120, 240), starts=(0, 80, 160))
    assert [route.at(epoch) for epoch in (0, 79, 80, 159, 160, 400)] == [60, 60, 120, 120, 240, 240]


def test_plain_distillation_is_the_route_with_one_anchor():
    assert Route(anchors=(240,)).at(17) == 240


@pytest.mark.parametrize(
    ("anchors", "starts", "message"),
    [
        ((1, 2), (0,), "2 anchors need as many starts, got 1"),
        ((2, 1), (0, 5), "anchors must rise"),
        ((1, 2), (0, 0), "starts must rise"),
        ((1,), (3,), "starts at student epoch 0"),
        ((), (), "starts at student epoch 0"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(anchors, starts, message):
    with pytest.raises(ValidationError, match=message):
        Route(anchors=anchors, starts=starts)
