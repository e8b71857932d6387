"""A test that holds for each row of a table: one test, which reports every row that fails."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest

_PART = "rows"  # the argument that says which rows are this test's
_SLOW = 8  # rows of a slow test, at most


def each(
    names: str | Sequence[str],
    rows: Iterable[Any],
    ids: Sequence[str] | Callable[[Any], object] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parameters of a test, as of `pytest.mark.parametrize`: one test of all rows.

    Every row is run, and each that fails is reported. Rows that are marked as slow are slow tests
    of their own, of some rows each. A row has a `tmp_path` and a `monkeypatch` of its own; all
    other fixtures are one for all rows, which must not leave anything in them. Several tables are
    a product.
    """
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    table = [*_table(keys, rows, ids)]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        inner, before = getattr(test, "_rows", (test, [({}, "", False)]))
        merged = [
            ({**more, **row}, f"{label}-{other}".strip("-"), slow or late)
            for (more, other, late), (row, label, slow) in product(before, table)
        ]
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.args[:1] != (_PART,)]
        return _test_of(inner, merged, marks)

    return decorate


def _table(
    keys: list[str], rows: Iterable[Any], ids: Sequence[str] | Callable[[Any], object] | None
) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Arguments, label and slowness of each row."""
    for number, row in enumerate(rows):
        values, slow, label = row, False, None
        if isinstance(row, type(pytest.param())):
            assert all(mark.name == "slow" for mark in row.marks), f"only slow marks: {row.marks}"
            values, slow, label = row.values, bool(row.marks), row.id
        elif len(keys) == 1:
            values = (row,)
        assert len(values) == len(keys), f"row {number}: {len(keys)} values expected, not {values}"
        if label is None and ids is not None:
            label = str(ids(values[0])) if callable(ids) else ids[number]
        yield dict(zip(keys, values, strict=True)), str(label or values)[:200], slow


def _test_of(
    test: Callable[..., None], rows: list[tuple[dict[str, Any], str, bool]], marks: list[Any]
) -> Callable[..., None]:
    """The test of all rows."""
    names = [name for name in inspect.signature(test).parameters if name not in rows[0][0]]
    quick = [number for number, (*_, slow) in enumerate(rows) if not slow]
    late = [number for number, (*_, slow) in enumerate(rows) if slow]
    parts = {f"slow-{start}": late[start : start + _SLOW] for start in range(0, len(late), _SLOW)}
    if quick:
        parts = {"quick": quick, **parts}

    def all_rows(**fixtures: Any) -> None:
        subtests, part = fixtures.pop("subtests"), fixtures.pop(_PART, next(iter(parts)))
        for number in parts[part]:
            row, label, _ = rows[number]
            with subtests.test(label), ExitStack() as stack:
                changed = {}
                if "tmp_path" in names:
                    changed["tmp_path"] = fixtures["tmp_path"] / f"row-{number}"
                    changed["tmp_path"].mkdir()
                if "monkeypatch" in names:
                    changed["monkeypatch"] = stack.enter_context(fixtures["monkeypatch"].context())
                test(**(fixtures | changed | row))

    arguments = [*names, "subtests", *([_PART] if len(parts) > 1 else [])]
    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in arguments])
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(all_rows, name, getattr(test, name))
    decorated: Any = all_rows
    decorated.__signature__ = signature
    decorated.pytestmark = [*marks]
    decorated._rows = (test, rows)
    if len(parts) > 1:
        slow = pytest.mark.slow
        which = [pytest.param(p, marks=() if p == "quick" else slow, id=p) for p in parts]
        decorated.pytestmark.append(pytest.mark.parametrize(_PART, which).mark)
    elif not quick:
        decorated.pytestmark.append(pytest.mark.slow.mark)
    return decorated
