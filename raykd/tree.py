"""Experiment files as plain trees: safe YAML, `key=value` overrides, grids laid out."""

import copy
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from raykd.errors import ConfigError
from raykd.registry import nearest

PARTS = ("data", "run", "grid", "search", "sweep", "scale")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is an error, and 1e-4 is a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # A merge (`<<: *defaults`) brings values that the mapping's own keys may replace.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(f"experiment: {key!r} is given twice in the part at line {line}")
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign, as in 1.0e-4. Quoted text, such as a digest, stays text.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_yaml(text: str, place: str = "experiment") -> Any:
    """The value that YAML text describes. Raises `ConfigError`; messages begin with `place`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        why = ", ".join(filter(None, (error.problem, error.context)))
        raise ConfigError(f"{place}{line}: not YAML ({why})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not YAML ({error})") from error


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
    """Whether a grid axis (a dotted key that begins with run.) sets this key of run."""
    axis = axis.removeprefix("run.")
    return key == axis or key.startswith(axis + ".")


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; `method: kd` on its way stands for `method: {name: kd}`, and so a codec."""
    *path, last = key.split(".")
    for step in path:
        inner = tree.get(step)
        if step in ("method", "codec") and isinstance(inner, str):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {step!r} is {inner!r}, which has no keys")
        tree[step] = inner
        tree = inner
    tree[last] = value


def laid_out(run: dict[str, Any], grid: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One tree per combination of the grid's values, the last axis running fastest."""
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
    for values in itertools.product(*grid.values()):
        tree = {"run": copy.deepcopy(run)}
        for axis, value in zip(grid, values, strict=True):
            _put(tree, axis, copy.deepcopy(value))
        yield tree["run"]


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key of run; a LookupError where there is none.

    A method or another named part may stand for its name: run.method is "kd".
    """
    for step in key.removeprefix("run.").split("."):
        if not isinstance(tree, dict) or step not in tree:
            raise LookupError(key)
        tree = tree[step]
    return tree["name"] if isinstance(tree, dict) and "name" in tree else tree
