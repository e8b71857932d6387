"""Trees of experiment files: their parts, `key=value` overrides, the combinations of a grid."""

import copy
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError
from raykd.core.registry import nearest

CODEC_KEYS = ("codec", "embedding_codec", "map_codec", "derived_codec")
PARTS = ("data", "run", "grid", "search", "sweep", "scale", "plugins", "published")


def check_parts(tree: dict[str, Any]) -> None:
    """Raise `ConfigError` where the parts of a file are not there, or are no parts."""
    for key in tree:
        if key not in PARTS:
            raise ConfigError(
                f"experiment.{key}: no such key"
                + (nearest(str(key), PARTS) or f"; there are: {', '.join(PARTS)}")
            )
    if not isinstance(tree.get("run"), dict):
        raise ConfigError("experiment.run: this key must be given, with a model and its data")
    digests = tree["run"].get("plugins")  # a recipe as JSON has them; recipes find them themselves
    if digests is not None and not (
        isinstance(digests, list) and all(re.fullmatch(r"[0-9a-f]{64}", str(d)) for d in digests)
    ):
        raise ConfigError(
            "experiment.run.plugins: name plugins at the top of the file, beside run, and leave "
            "this out"
        )
    if not isinstance(tree.get("grid") or {}, dict):
        raise ConfigError("experiment.grid: expected keys of run, each with a list of values")


def override(tree: dict[str, Any], text: str) -> None:
    """Set one `key=value` in the file's tree; the value is read as YAML."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r}: expected key=value, such as run.seed=3")
    value = read_yaml(written, key)
    part, _, inner = key.partition(".")
    if part not in PARTS:
        raise ConfigError(f"{key}: no such key{nearest(part, PARTS) or '; begin with run.'}")
    if not inner:
        tree[part] = value
    elif part in ("grid", "search"):
        tree[part] = {**(tree.get(part) or {}), inner: value}
    elif part == "run":
        for varied in ("grid", "search"):
            axes = [axis for axis in tree.get(varied) or {} if within(inner, str(axis))]
            if axes:
                axis = axes[0]
                values = "[...]" if varied == "grid" else "{choice: [...]}"
                what = f"override {varied}.{axis}={values} instead"
                whole = "this key" if axis == key else f"all of {axis}"
                raise ConfigError(f"{key}: the {varied} varies {whole}; {what}")
        _put(tree, key, value)
    else:
        _put(tree, key, value)


def within(key: str, axis: str) -> bool:
    """True if a grid axis (a dotted key that begins with run.) sets this key of run."""
    axis = axis.removeprefix("run.")
    return key == axis or key.startswith(axis + ".")


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; `method: kd` on its way stands for `method: {name: kd}`, and so a codec."""
    *path, last = key.split(".")
    whole: Any = tree
    for step in path:
        inner = _inner(whole, step, key)
        if step in ("method", *CODEC_KEYS) and isinstance(inner, str):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict | list):
            raise ConfigError(f"{key}: {step!r} is {inner!r}, which has no keys")
        _set(whole, step, inner)
        whole = inner
    _inner(whole, last, key)
    _set(whole, last, value)


def _inner(tree: dict[str, Any] | list[Any], step: str, key: str) -> Any:
    """The value at one step of a dotted key; a list's items go by their numbers, from 0."""
    if isinstance(tree, dict):
        return tree.get(step)
    if not step.isdecimal() or int(step) >= len(tree):
        raise ConfigError(
            f"{key}: expected a number from 0 to {len(tree) - 1} for one of the list's "
            f"{len(tree)} items, got {step!r}"
        )
    return tree[int(step)]


def _set(tree: dict[str, Any] | list[Any], step: str, value: Any) -> None:
    if isinstance(tree, dict):
        tree[step] = value
    else:
        tree[int(step)] = value


def combinations(
    run: dict[str, Any], grid: Mapping[str, Any], limit: int | None = None
) -> Iterable[dict[str, Any]]:
    """One tree per combination of the grid's values, the last axis running fastest.

    Raises `ConfigError` where the grid is none, or has more than `limit` combinations.
    """
    for axis, values in grid.items():
        if not str(axis).startswith("run."):
            raise ConfigError(
                f"experiment.grid.{axis}: a grid varies keys of run, such as run.seed"
            )
        if not isinstance(values, list) or not values:
            raise ConfigError(f"experiment.grid.{axis}: expected a list of values, got {values!r}")
        inside = [other for other in grid if other != axis and within(other[4:], axis)]
        if inside:
            raise ConfigError(
                f"experiment.grid.{inside[0]}: {axis} sets this key too; write its values there"
            )
    check_count("grid", "lays out", "students", grid, limit)
    for values in itertools.product(*grid.values()):
        tree = {"run": copy.deepcopy(run)}
        for axis, value in zip(grid, values, strict=True):
            _put(tree, axis, copy.deepcopy(value))
        yield tree["run"]


def check_count(
    key: str, does: str, what: str, grid: Mapping[str, list[Any]], limit: int | None, times: int = 1
) -> None:
    """Raise `ConfigError` where a grid has more combinations, each so many `times`, than `limit`.

    `key` is the part of the file that `does` that with `what`.
    """
    counts = [len(values) for values in grid.values()]
    total = math.prod(counts) * times
    if limit is None or total <= limit:
        return
    factors = [f"{count:,} of {axis}" for axis, count in zip(grid, counts, strict=True)]
    factors += [f"{times:,} samples"] if times > 1 else []
    raise ConfigError(
        f"experiment.{key}: it {does} {total:,} {what} ({' x '.join(factors)}), more than the "
        f"{limit:,} of scale.grid_limit; vary less, or raise that"
    )


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key of run; a LookupError where there is none.

    A method or another named part may stand for its name: run.method is "kd".
    """
    for step in key.removeprefix("run.").split("."):
        if isinstance(tree, list | tuple) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
        else:
            raise LookupError(key)
    return tree["name"] if isinstance(tree, dict) and "name" in tree else tree
