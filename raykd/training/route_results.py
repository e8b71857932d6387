"""What is known of the routes that searches are to find.

A search's artefact is a folder with the decisions so far, which is complete when the last anchor
is chosen. The students that it trains on the way are artefacts of their own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from raykd.core.errors import CacheCorrupt
from raykd.core.record import fingerprint
from raykd.recipes import Asked, LogitsRun, Search, StudentRun
from raykd.storage.store import Store, first_line, read_json

DECISIONS = "decisions.json"


@dataclass(frozen=True)
class Decision:
    """What was measured after a stage, and where the search went."""

    anchor: int  # of the stage
    student: str  # fingerprint of the stage's student
    distances: dict[int, float]  # from that student to the stage's checkpoint and every later one
    ratios: dict[int, float]  # relative hardness r of those; infinity where nothing is left to do
    next: int


class _Decision(BaseModel):
    """A decision as its file has it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    anchor: int
    student: str
    distances: dict[str, float]
    ratios: dict[str, float | None]  # null: infinity
    next: int


class _Decisions(BaseModel):
    """The file."""

    decisions: list[_Decision]


def anchors_of(search: Search, decisions: list[Decision]) -> tuple[int, ...]:
    """The anchors that are known: those of the stages, and the one to go to."""
    first = search.candidates()[0]
    return (first, *(decision.next for decision in decisions))


def is_complete(search: Search, decisions: list[Decision]) -> bool:
    """Whether the last anchor, the trained teacher, is among the decisions."""
    return anchors_of(search, decisions)[-1] == search.candidates()[-1]


def is_found(store: Store, search: Search) -> bool:
    """True where a search is over and its decisions are there. Raises `CacheCorrupt`."""
    return store.has(search) and is_complete(search, read_decisions(store, search))


def read_decisions(store: Store, search: Search) -> list[Decision]:
    """What a search has decided so far. Raises `CacheCorrupt` where that cannot be read."""
    path = store.path(search) / DECISIONS
    if not store.has(search):  # otherwise they are final, and came with it
        store.renew(path)
    if not path.exists():
        return []
    what = "the decisions cannot be read"
    advice = "remove the folder to measure again; the students that it trained stay"
    value = read_json(path, _Decisions, what=what, advice=advice)
    try:
        written = _Decisions.model_validate(value)
        decisions = [_decision(entry) for entry in written.decisions]
        _check(search, decisions)
    except (ValueError, OverflowError) as error:
        raise CacheCorrupt(f"{path}: {what} ({first_line(error)}); {advice}") from error
    return decisions


def _check(search: Search, decisions: list[Decision]) -> None:
    """Raise `ValueError` where decisions are not those of a search, one after the other."""
    candidates = search.candidates()
    for number, decision in enumerate(decisions):
        anchors = anchors_of(search, decisions[:number])
        stage = search.stage(anchors)
        if decision.anchor != anchors[-1] or decision.student != fingerprint(stage):
            raise ValueError(f"decision {number + 1} is about another student")
        if decision.next not in candidates or decision.next <= decision.anchor:
            raise ValueError(f"after anchor {decision.anchor} comes {decision.next!r}")


def write_decisions(store: Store, search: Search, decisions: list[Decision]) -> None:
    """Keep what a search has decided so far."""
    value = {
        "candidates": search.candidates(),
        "threshold": search.threshold,
        "anchors": anchors_of(search, decisions),
        "decisions": [_plain(decision) for decision in decisions],
    }
    store.write_json(store.path(search) / DECISIONS, value)


def next_stage(store: Store, search: Search) -> StudentRun | None:
    """The student that a search has to train next; None where the search is over."""
    decisions = read_decisions(store, search)
    if is_complete(search, decisions):
        return None
    return search.stage(anchors_of(search, decisions))


def route_found(store: Store, run: Asked) -> StudentRun | None:
    """The student that was asked for; None where its route is not found yet."""
    if isinstance(run, StudentRun):
        return run
    decisions = read_decisions(store, run.search)
    known = is_complete(run.search, decisions)
    return run.along(anchors_of(run.search, decisions)) if known else None


def so_far(store: Store, runs: Iterable[Asked]) -> tuple[list[StudentRun], list[LogitsRun]]:
    """The students that are known, or the stages that searches are at, and what they measure by."""
    students, caches = [], []
    for run in runs:
        student = route_found(store, run)
        if student is None and not isinstance(run, StudentRun):
            student = next_stage(store, run.search)
        if not isinstance(run, StudentRun):
            caches += measures(run.search)
        students += [student] if student is not None else []
    return list(dict.fromkeys(students)), list(dict.fromkeys(caches))


def measures(search: Search) -> list[LogitsRun]:
    """The caches by which a search measures distances."""
    if not search.student.cached():
        return []  # it asks the teacher in person
    return [search.student.validation_logits(anchor) for anchor in search.candidates()]


def _plain(decision: Decision) -> dict[str, Any]:
    """A decision as JSON has it, where infinity is null."""
    ratios = {str(a): r if math.isfinite(r) else None for a, r in decision.ratios.items()}
    return {
        "anchor": decision.anchor,
        "student": decision.student,
        "distances": {str(anchor): value for anchor, value in decision.distances.items()},
        "ratios": ratios,
        "next": decision.next,
    }


def _decision(value: _Decision) -> Decision:
    ratios = {int(a): math.inf if r is None else r for a, r in value.ratios.items()}
    far = {int(anchor): distance for anchor, distance in value.distances.items()}
    return Decision(value.anchor, value.student, far, ratios, value.next)
