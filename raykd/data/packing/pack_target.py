"""The folder that a pack is made in: whose it is, what is there already, and what is left over."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from raykd.core.errors import DataError, NoRoom
from raykd.data.sources.files import Files
from raykd.data.sources.pack_shards import MARKER, PLAN, numbered, read_json, sealed


def claim(files: Files, plan: dict[str, Any], size: int) -> dict[tuple[str, int], list[str]]:
    """Write the plan of a pack of about `size` bytes into its folder, which may be one of before.

    Returns the names of shards that are there, by split and number. Those of a pack that was never
    finished are removed where the files that it is made of have changed since. Raises `DataError`
    where the folder holds something else, `NoRoom` where the disk cannot hold the shards.
    """
    sizes = {entry.name: entry.size for entry in files.walk()}
    said = next((name for name in (MARKER, PLAN) if name in sizes), None)
    if said is not None:
        facts = read_json(files, said)
        if said == PLAN and _is_outdated(facts, plan):
            for name in [*filter(numbered, sizes)]:
                files.remove(name)
                del sizes[name]
            said = None
        else:
            _check(files, facts.get("plan", facts), plan)
    elif sizes:
        raise DataError(
            f"{files.describe('')}: the folder is not empty, and holds no pack; choose another one"
        )
    there: dict[tuple[str, int], list[str]] = {}
    for name, present in sizes.items():
        found = numbered(name)
        if found is not None:
            there.setdefault(found[:2], []).append(name)
            size -= present
    _check_room(files, size)
    if said is None:
        files.put(PLAN, _json(plan))
    return there


def settle(files: Files, facts: dict[str, Any], kept: Collection[str]) -> None:
    """Write the marker, which makes a pack complete, and remove what is no part of it."""
    files.put(MARKER, _json(sealed(facts)))
    for entry in files.walk():
        if entry.name == PLAN or (numbered(entry.name) and entry.name not in kept):
            files.remove(entry.name)


def _is_outdated(said: dict[str, Any], plan: dict[str, Any]) -> bool:
    """True for the plan of a pack of the same place, made in the same way, of other files."""
    other = [key for key, value in plan.items() if said.get(key) != value]
    return bool(other) and {*other} <= {"files", "images"}


def _check(files: Files, said: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise `DataError` where what is said of a folder is not the plan."""
    names = {"files": "its files have changed since"}
    other = [
        names.get(key, f"{key} was {said.get(key)}, now {value}")
        for key, value in plan.items()
        if key != "source" and said.get(key) != value
    ]
    if other:
        raise DataError(
            f"{files.describe('')}: holds a pack of {said.get('source')} that was made of other "
            f"images or in another way ({'; '.join(other)}); remove it, or choose another folder"
        )


def _check_room(files: Files, wanted: int) -> None:
    """Raise `NoRoom` where the disk of this machine is too small for so many bytes more."""
    if files.remote is not None:
        return
    place = Path(files.root)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise NoRoom(
            f"{files.root}: the pack needs {wanted / 1e6:.0f} MB more, the disk has "
            f"{free / 1e6:.0f} MB; make room, or choose another disk"
        )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
