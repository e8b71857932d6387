"""Decisions of route searches, and the routes that follow from them.

A search's artefact is a folder with the decisions so far, which is complete when the last anchor
is chosen. The students that it trains on the way are artefacts of their own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, FiniteFloat, PlainSerializer, TypeAdapter

from raykd.core.errors import CacheCorrupt
from raykd.core.record import fingerprint
from raykd.recipes import AnyStudent, OutputsRun, Search, StudentRun
from raykd.storage.store import Store, first_line, read_json

DECISIONS = "decisions.json"


# A relative hardness r; infinity, where the student is at the checkpoint, is null in the file.
Ratio = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda ratio: ratio if math.isfinite(ratio) else None),
]


@dataclass(frozen=True)
class Decision:
    """Measurements after a stage, and the anchor that the search chose next."""

    anchor: int  # the stage's checkpoint of the teacher, by its epoch
    student: str  # fingerprint of the stage's student
    distances: dict[int, FiniteFloat]  # checkpoint -> distance of the student, from `anchor` on
    ratios: dict[int, Ratio]  # checkpoint -> relative hardness
    next: int


_DECISIONS = TypeAdapter(list[Decision])


def anchors_of(search: Search, decisions: list[Decision]) -> tuple[int, ...]:
    """The anchors so far: those of the stages, and the next one."""
    first = search.candidates()[0]
    return (first, *(decision.next for decision in decisions))


def is_complete(search: Search, decisions: list[Decision]) -> bool:
    """True if the last anchor, the trained teacher, is among the decisions."""
    return anchors_of(search, decisions)[-1] == search.candidates()[-1]


def is_found(store: Store, search: Search) -> bool:
    """True if a search is over and its decisions are there. Raises `CacheCorrupt`."""
    return store.has(search) and is_complete(search, read_decisions(store, search))


def read_decisions(store: Store, search: Search) -> list[Decision]:
    """The decisions of a search so far. Raises `CacheCorrupt` if they cannot be read."""
    path = store.path(search) / DECISIONS
    if not store.has(search):  # otherwise they are final, and were fetched with the artefact
        store.renew(path)
    if not path.exists():
        return []
    what = "the decisions cannot be read"
    advice = "remove the folder to measure again; the students that it trained stay"
    value = read_json(path, what=what, advice=advice)
    try:
        decisions = _DECISIONS.validate_python(value.get("decisions"))
        _check(search, decisions)
    except (ValueError, OverflowError) as error:
        raise CacheCorrupt(f"{path}: {what} ({first_line(error)}); {advice}") from error
    return decisions


def _check(search: Search, decisions: list[Decision]) -> None:
    """Raise `ValueError` unless the decisions are a search's, one after the other."""
    candidates = search.candidates()
    for number, decision in enumerate(decisions):
        anchors = anchors_of(search, decisions[:number])
        stage = search.stage(anchors)
        if decision.anchor != anchors[-1] or decision.student != fingerprint(stage):
            raise ValueError(f"decision {number + 1} is about another student")
        if decision.next not in candidates or decision.next <= decision.anchor:
            raise ValueError(f"after anchor {decision.anchor} comes {decision.next!r}")


def write_decisions(store: Store, search: Search, decisions: list[Decision]) -> None:
    """Write the decisions of a search so far."""
    value = {
        "candidates": search.candidates(),
        "threshold": search.threshold,
        "anchors": anchors_of(search, decisions),
        "decisions": _DECISIONS.dump_python(decisions, mode="json"),
    }
    store.write_json(store.path(search) / DECISIONS, value)


def next_stage(store: Store, search: Search) -> StudentRun | None:
    """The student that a search has to train next; None if the search is over."""
    decisions = read_decisions(store, search)
    if is_complete(search, decisions):
        return None
    return search.stage(anchors_of(search, decisions))


def route_found(store: Store, run: AnyStudent) -> StudentRun | None:
    """The student itself, or the one along the route that its search found; None before that."""
    if isinstance(run, StudentRun):
        return run
    decisions = read_decisions(store, run.search)
    complete = is_complete(run.search, decisions)
    return run.along(anchors_of(run.search, decisions)) if complete else None


def plannable(
    store: Store, runs: Iterable[AnyStudent]
) -> tuple[list[StudentRun], list[OutputsRun]]:
    """The students that can be planned so far, and the caches that searches measure with.

    While a search is under way, its next stage stands for its student.
    """
    students, caches = [], []
    for run in runs:
        student = route_found(store, run)
        if not isinstance(run, StudentRun):
            student = student or next_stage(store, run.search)
            caches += measures(run.search)
        if student is not None:
            students.append(student)
    return list(dict.fromkeys(students)), list(dict.fromkeys(caches))


def measures(search: Search) -> list[OutputsRun]:
    """The caches by which a search measures distances."""
    if not search.student.cached():
        return []  # the live teacher answers
    return [search.student.validation_outputs(anchor) for anchor in search.candidates()]
