"""Labels of recipes: the method, then the keys that differ.

A chain of stages or of assistants is a few words too, however deep its recipe nests.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from raykd.core.safe_names import printable
from raykd.tracking.console import DIGITS, rounded

# Named only where nothing else tells two recipes apart: what a dataset's other keys entail, and
# what the stages of a chain had before the last one.
_FOLLOWS = (".digest", ".classes", ".size", ".mean", ".std", ".outputs", ".fine_tune", " by stage")
# What weights that are given as a teacher were not trained by.
_UNUSED = ("optim", "label_smoothing", "precision", "seed", "save_every", "refresh_statistics")
_APART = ("model", "teacher", "after", "route")  # keys that panel members are not told apart by
_FIRST = ("rco", "anchors", "stages", "teacher.model", "via")  # after the method, in this order


def labels(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """A label for each of some plain recipes; those of different networks may share one.

    A key is named where its values differ, and compared only among things of one name: the
    temperatures of two methods are two keys. What a dataset's other keys entail, and what a
    missing teacher lacks, is named only where nothing else tells two recipes apart. The `rco` of
    a recipe, if it has one, is the search that chose its route, or is to choose it.
    """
    flats = [_flat(_described(recipe)) for recipe in recipes]
    rows = [(flat.pop("model"), flat.pop("method", "")) for flat in flats]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    for key in sorted(keys, key=_place):
        words = _column(key, flats)
        values = set(words)
        if ":" in key or key.startswith(("teacher.", *_UNUSED)):
            values.discard("")
        longer = [(*row, word) for row, word in zip(rows, words, strict=True)]
        differs = len(values) > 1 and not f".{key}".endswith(_FOLLOWS)
        if differs or len(set(longer)) > len(set(rows)):
            rows = longer
    return [" ".join(filter(None, row[1:])) for row in rows]


def called(named: dict[str, Any]) -> str:
    """Name of a method or of another named record without settings.

    "kd", "crd + kd" for a sum, or "sakd(at)" for one over a base.
    """
    if "combine" in named:
        return " + ".join(called(part) for part in named["combine"])
    base = named.get("base")
    return f"{named['name']}({called(base)})" if base else named["name"]


def _described(recipe: dict[str, Any]) -> dict[str, Any]:
    """A plain recipe whose chains are words: the route's anchors, its stages, the assistants.

    All else is the last stage's, and the teacher is the first of the chain.
    """
    description = {k: v for k, v in recipe.items() if k not in ("after", "route", "teacher", "rco")}
    last_stage = _flat(description)
    if "rco" in recipe:
        description |= _found(recipe)
    else:
        description |= _route([*_up(recipe, "after")][::-1])
    if "teacher" not in recipe:
        return _used(description)
    *assistants, teacher = [*_up(recipe, "teacher")][1:] or [{}]
    if assistants:
        models = [assistant["model"] for assistant in reversed(assistants)]
        flats = [_flat(_described(assistant | {"teacher": None})) for assistant in assistants]
        settings = {flat.pop("model"): _unlike(flat, last_stage) for flat in flats}
        description["via"] = {"name": ",".join(models)} | settings
    images = {key: value for key, value in last_stage.items() if key.startswith("data")}
    if members := teacher.get("panel"):
        settings = [
            _unlike(_flat({k: v for k, v in _used(m).items() if k not in _APART}), images)
            for m in members
        ]
        model = " + ".join(member["model"] for member in members)
        numbered = {str(number): values for number, values in enumerate(settings)}
        teacher = {**teacher, "model": model, "panel": numbered}
    return description | {"teacher": _unlike(_flat(_used(teacher)), images) if teacher else None}


def _found(recipe: dict[str, Any]) -> dict[str, Any]:
    """The search for a recipe's route, and the route, or by what it is sought."""
    rco = dict(recipe["rco"])
    stages = rco.pop("stages")
    if recipe["route"] is None and recipe["after"] is None:
        sought = f"threshold={rco.pop('threshold')}"
        return {"rco": rco, "anchors": sought, "stages": {"name": stages}}
    return {"rco": rco} | _route([*_up(recipe, "after")][::-1])


def _route(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The anchors of some stages, and how they follow each other; nothing for the last anchor."""
    anchors = [_anchors(stage) for stage in stages]
    route, all_anchors = stages[-1].get("route"), [anchor for stage in anchors for anchor in stage]
    if len(stages) == 1:
        if route is None:
            return {}
        description: dict[str, Any] = {"anchors": all_anchors}
        if len(all_anchors) > 1:
            epochs, count = stages[0].get("optim", {}).get("epochs", 0), len(all_anchors)
            even = [number * epochs // count for number in range(count)]
            uneven = {} if route["starts"] == even else {"starts": route["starts"]}
            description["stages"] = {"name": "one_stage"} | uneven
        return description
    flats = [_flat({k: v for k, v in s.items() if k not in ("after", "route")}) for s in stages]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    values = {f"{key} by stage": [flat.get(key) for flat in flats] for key in keys}
    before = {key: each for key, each in values.items() if each.count(each[0]) < len(each)}
    if anchors.count(anchors[0]) == len(anchors):
        return {"stages": {"name": f"{len(stages)} stages"} | before}
    return {"anchors": all_anchors, "stages": {"name": "multi_stage"} | before}


def _anchors(stage: dict[str, Any]) -> list[int]:
    """The teacher's epochs that one stage learns from."""
    if stage.get("route") is not None:
        return stage["route"]["anchors"]
    teacher = stage.get("teacher")
    if teacher is None or "panel" in teacher:
        return []
    return [0 if _is_given(teacher) else teacher["optim"]["epochs"]]


def _is_given(teacher: dict[str, Any]) -> bool:
    """True for a teacher that is its weights."""
    return teacher.get("weights") is not None and teacher.get("fine_tune") is False


def _used(teacher: dict[str, Any]) -> dict[str, Any]:
    """The fields that determine a teacher; those of a training only where it was trained."""
    if not _is_given(teacher):
        return teacher
    return {key: value for key, value in teacher.items() if key not in _UNUSED}


def _up(recipe: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """A recipe, and what it names under a key, and what that names there, and so on."""
    while recipe:
        yield recipe
        recipe = recipe.get(key) or {}


def _place(key: str) -> tuple[bool, bool, int]:
    """Position of a key in a label."""
    first = _FIRST.index(key) if key in _FIRST else len(_FIRST)
    return f".{key}".endswith(_FOLLOWS), not key.startswith("method"), first


def _unlike(recipe: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe whose values are not another's."""
    return {key: value for key, value in recipe.items() if key not in other or other[key] != value}


def _parts(named: dict[str, Any]) -> dict[str, Any]:
    """The settings of a named thing; those of a sum below the names of its parts."""
    if "combine" in named:
        return {called(part): _parts(part) for part in named["combine"]}
    return {key: value for key, value in named.items() if key != "name"}


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted keys and their values; below a named thing they say whose they are (optim:sgd.lr)."""
    flat = {}
    for key, inner in value.items():
        where = f"{path}.{key}".removeprefix(".")
        if not isinstance(inner, dict):
            flat[where] = inner
        elif "name" in inner:
            alone = {key: value for key, value in inner.items() if key != "base"}
            own, base = _parts(alone), _parts(inner.get("base") or {})
            # Its own settings are compared over any base, the base's over the same one only.
            flat |= {where: called(inner)} | _flat(own, f"{where}:{called(alone)}")
            below = {f"base.{key}" if key in own else key: base[key] for key in base}
            flat |= _flat(below, f"{where}:{called(inner)}")
        else:
            flat |= _flat(inner, where)
    return flat


def _column(key: str, flats: Sequence[dict[str, Any]]) -> list[str]:
    """The words of each recipe about a key, its fractions as short as tells all of them apart."""
    exact = [_words(key, flat[key]) if key in flat else "" for flat in flats]
    for digits in range(DIGITS, 17):
        short = [_words(key, rounded(flat[key], digits)) if key in flat else "" for flat in flats]
        if len(set(short)) == len(set(exact)):
            return short
    return exact


def _words(key: str, value: Any) -> str:
    """A key and its value as a label says them: temperature=4.0, from resnet56."""
    text = printable(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    if text.startswith("sha256:"):
        text = text[:19]  # as much as tells files apart
    if key in ("teacher.model", "via"):
        return f"{'via' if key == 'via' else 'from'} {text}"
    if key in ("rco", "stages") or (key == "anchors" and isinstance(value, str)):
        return text
    key = re.sub(r":[^.]*", "", key)
    key = re.sub(r"(^|(?<=\.))(method|optim|stages|via)\.", "", key)
    return f"{key}={text.replace('null', 'none')}"
