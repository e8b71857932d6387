"""Several errors as one, and the exit status that it has."""

from raykd.core.errors import (
    CacheCorrupt,
    ConfigError,
    Damaged,
    ExportFailed,
    NoRoom,
    RaykdError,
    Unreachable,
    WorkFailed,
    folded,
    of_codes,
)


def test_errors_that_are_alike_keep_their_status():
    for kind in RaykdError.__subclasses__():
        both = folded([kind("one"), kind("two"), kind("one")])
        assert type(both) is kind
        assert str(both) == "one\ntwo"


def test_errors_of_several_kinds_are_failed_work():
    assert type(folded([NoRoom("one"), Unreachable("two")])) is WorkFailed
    assert type(folded([ConfigError("one"), WorkFailed("two"), ConfigError("three")])) is WorkFailed


def test_an_error_that_is_alone_or_said_twice_is_raised_itself():
    first = Damaged("a file")
    assert folded([first]) is first
    assert folded([first, Damaged("a file")]) is first
    assert folded([CacheCorrupt("one"), Damaged("two")]).code == 5


def test_a_status_that_no_error_has_is_failed_work():
    assert type(of_codes([8, 8], "said")) is ExportFailed
    assert type(of_codes([42], "said")) is WorkFailed
    assert type(of_codes([], "said")) is WorkFailed
