"""Experiment files as plain trees: safe YAML, `key=value` overrides, grids laid out."""

import copy
import itertools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from raykd.core.errors import ConfigError
from raykd.core.registry import nearest

PARTS = ("data", "run", "grid", "search", "sweep", "scale")
_DEEPEST = 50  # mappings and lists within each other
_MOST_VALUES = 100_000  # with what aliases stand for
_LONGEST = 300  # digits of a number
_OTHER = "{0!r} is {1} to YAML 1.1 alone; write {1} where you mean that number, or quote the text"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Safe YAML that means one thing: no key twice, no number or truth of YAML 1.1 alone.

    1e-4 is a number. What a loader of YAML 1.2 reads as something else (`1:30`, `0x10`, `010`,
    `1_000`, `yes`) is refused, and so is what cannot be laid out as a tree of some size.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark  # pyright: ignore[reportOptionalMemberAccess]
            raise _Refused(mark, f"more than {_DEEPEST} lists or mappings within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # A merge (`<<: *defaults`) brings values that the mapping's own keys may replace.
        own = [key for key, _ in node.value if key.tag != _MERGE]
        keys = [self.construct_object(key, deep=deep) for key in own]
        seen: set[Any] = set()
        for key in keys:
            if isinstance(key, Hashable):
                if key in seen:
                    raise _Twice(node.start_mark, key)
                seen.add(key)
        return super().construct_mapping(node, deep)

    def plain_bool(self, node: Any) -> bool:
        """True or false, in letters that mean it everywhere."""
        if node.value.lower() not in ("true", "false"):
            value = str(super().construct_yaml_bool(node)).lower()
            why = f"{node.value!r} is {value} to YAML 1.1 alone; write {value}, or quote the text"
            raise _Refused(node.start_mark, why)
        return super().construct_yaml_bool(node)

    def plain_int(self, node: Any) -> int:
        """A decimal number."""
        value = _read_number(node, super().construct_yaml_int)
        if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value) is None:
            raise _Refused(node.start_mark, _OTHER.format(node.value, value))
        return value

    def plain_float(self, node: Any) -> float:
        """A decimal number."""
        value = _read_number(node, super().construct_yaml_float)
        if ":" in node.value or "_" in node.value:
            raise _Refused(node.start_mark, _OTHER.format(node.value, value))
        return value

    def plain_text(self, node: Any) -> str:
        """Text of characters that can be printed."""
        text = super().construct_yaml_str(node)
        for character in text:
            if (character < " " and character not in "\n\t") or "\ud800" <= character <= "\udfff":
                raise _Refused(
                    node.start_mark, f"the character {ord(character):#06x} cannot stand in text"
                )
        return text


class _Refused(Exception):
    """The error for a mistake in YAML, with its place."""

    def __init__(self, mark: Any, why: str) -> None:
        self.line, self.why = mark.line + 1, why


class _Twice(_Refused):
    """A key that is given twice."""

    def __init__(self, mark: Any, key: Any) -> None:
        super().__init__(mark, f"{key!r} is given twice in the part at line {mark.line + 1}")


def _read_number(node: Any, read: Callable[[Any], Any]) -> Any:
    """The number that `read` makes of a text that is not too long for it."""
    if len(node.value) > _LONGEST:
        raise _Refused(node.start_mark, f"a number has more than {_LONGEST} digits")
    try:
        return read(node)
    except ValueError as error:
        raise _Refused(node.start_mark, f"not YAML ({error})") from error


for _kind, _reader in (
    ("bool", _Loader.plain_bool),
    ("int", _Loader.plain_int),
    ("float", _Loader.plain_float),
    ("str", _Loader.plain_text),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _reader)

# YAML 1.1 wants a dot and a sign, as in 1.0e-4. Quoted text, such as a digest, stays text.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_yaml(text: str, place: str = "experiment") -> Any:
    """The value that YAML text describes. Raises `ConfigError`; messages begin with `place`."""
    return read_lines(text, place)[0]


def read_lines(text: str, place: str = "experiment") -> tuple[Any, dict[str, int]]:
    """The value that YAML text describes, and the line of every dotted key, from 1.

    Raises `ConfigError`; messages begin with `place`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is None:
            return None, lines
        for count, (key, line) in enumerate(_keys(node, "", [])):
            lines.setdefault(key, line)
            if count > _MOST_VALUES:
                raise _Refused(node.start_mark, f"more than {_MOST_VALUES:,} values")
        return loader.construct_document(node), lines
    except _Twice as error:
        raise ConfigError(f"{place}: {error.why}") from error
    except _Refused as error:
        raise ConfigError(f"{place}, line {error.line}: {error.why}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        why = ", ".join(filter(None, (error.problem, error.context)))
        raise ConfigError(f"{place}{line}: not YAML ({why})") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{place}, line {line}: the character {ord(text[error.position]):#06x} cannot stand in "
            "YAML; remove it"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # The last three are PyYAML's own where a value is not of the kind that its tag says.
        raise ConfigError(f"{place}: not YAML ({error})") from error


def _keys(node: Any, prefix: str, around: list[Any]) -> Iterator[tuple[str, int]]:
    """Every dotted key of a node with its line, those of merges after a mapping's own.

    `around` are the nodes that it lies in. Raises `_Refused` where it lies in itself.
    """
    if any(node is other for other in around):
        raise _Refused(node.start_mark, "an alias stands for what it lies in itself")
    around = [*around, node]
    if isinstance(node, yaml.SequenceNode):
        pairs = [(str(number), item, item) for number, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        pairs = [(_name(key), key, value) for key, value in own]
        merged = [value for key, value in node.value if key.tag == _MERGE]
    else:
        return
    for name, marked, value in pairs:
        key = f"{prefix}.{name}" if prefix else name
        yield key, marked.start_mark.line + 1
        yield from _keys(value, key, around)
    for value in merged if isinstance(node, yaml.MappingNode) else ():
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for part in parts:
            yield prefix, part.start_mark.line + 1
            yield from _keys(part, prefix, around)


def _name(key: Any) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else "?"


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


def laid_out(
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
        if not isinstance(tree, dict) or step not in tree:
            raise LookupError(key)
        tree = tree[step]
    return tree["name"] if isinstance(tree, dict) and "name" in tree else tree
