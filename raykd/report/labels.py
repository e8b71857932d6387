"""What tells recipes apart, in few words: the method, then the keys that differ."""

import json
import re
from collections.abc import Sequence
from typing import Any

_FOLLOWS = (".digest", ".classes", ".size", ".mean", ".std")  # from a dataset's other keys


def labels(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """A label for each of some plain recipes; those of different networks may share one.

    A key is named where its values differ, and compared only among things of one name: the
    temperatures of two methods are two keys. What a dataset's other keys entail, and what a
    missing teacher lacks, is named only where nothing else tells two recipes apart.
    """
    flats = [_flat(recipe) for recipe in recipes]
    rows = [(flat.pop("model"), flat.pop("method", "")) for flat in flats]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    for key in sorted(keys, key=lambda k: (k.endswith(_FOLLOWS), not k.startswith("method"))):
        words = [_words(key, flat[key]) if key in flat else "" for flat in flats]
        values = set(words)
        if ":" in key or key.startswith("teacher."):
            values.discard("")
        longer = [(*row, word) for row, word in zip(rows, words, strict=True)]
        differs = len(values) > 1 and not key.endswith(_FOLLOWS)
        if differs or len(set(longer)) > len(set(rows)):
            rows = longer
    return [" ".join(filter(None, row[1:])) for row in rows]


def called(named: dict[str, Any]) -> str:
    """What a person calls a plain method or another named thing.

    "kd", "crd + kd" for a sum, or "sakd(at)" for one over a base.
    """
    if "combine" in named:
        return " + ".join(called(part) for part in named["combine"])
    base = named.get("base")
    return f"{named['name']}({called(base)})" if base else named["name"]


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


def _words(key: str, value: Any) -> str:
    """A key and its value as a label says them: temperature=4.0, from resnet56."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    if key == "teacher.model":
        return f"from {text}"
    key = re.sub(r":[^.]*", "", key).removeprefix("method.").removeprefix("optim.")
    return f"{key}={text.replace('null', 'none')}"
