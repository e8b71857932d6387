"""Changes of some keys in the text of an experiment file, whose comments and layout stay."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raykd.config.experiment import parse
from raykd.config.overrides import override
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError
from raykd.storage.atomic import write_atomic

_MERGE = "tag:yaml.org,2002:merge"


def edit_file(path: Path, changes: Mapping[str, Any], overrides: Iterable[str] = ()) -> None:
    """Write other values of some dotted keys into an experiment file; see `edited`.

    Raises `ConfigError`, before anything is written, also for a key that an override sets, and
    where the file would not be one that can be run with them.
    """
    for setting in overrides:
        given = setting.partition("=")[0]
        if shadowed := [key for key in changes if f"{key}.".startswith(f"{given}.")]:
            raise ConfigError(
                f"{path}: {shadowed[0]} is to be changed there, and {setting!r} on the command "
                "line stands in its place; leave that out"
            )
    path = path.resolve()  # a link stays one
    text = edited(path.read_bytes().decode(), changes, str(path))  # lines end as they did
    parse(text, path.stem, overrides, str(path))
    write_atomic(path, text.encode())


def edited(text: str, changes: Mapping[str, Any], path: str = "experiment") -> str:
    """The text of a file with other values of some dotted keys, which are numbers, words or null.

    A value is replaced where it stands; a key that is not there becomes the last one of its
    mapping. Raises `ConfigError` where that would change more than these keys: a value that is an
    alias or has an anchor, a key that comes from a merge (`<<`), one that the grid or the search
    varies, and one whose place is no mapping.
    """
    for key, value in changes.items():
        expected = read_yaml(text, path)
        override(expected, f"{key}={_written(value)}")
        text = _Editor(text, path, key).put(_written(value))
        if read_yaml(text, path) != expected:
            raise ConfigError(
                f"{path}: {key} cannot be changed without changing something else; write "
                f"{key}: {_written(value)} there yourself"
            )
    return text


def _written(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class _Editor:
    """The change of one key."""

    text: str
    path: str
    key: str

    def put(self, written: str) -> str:
        """The text with the key's value, as YAML in one line."""
        node = yaml.compose(self.text, yaml.SafeLoader)
        self._check_alone(node, node)
        names = self.key.split(".")
        for depth, name in enumerate(names):
            if not isinstance(node, yaml.MappingNode):
                raise self._refused(node, f"{'.'.join(names[:depth])} is no mapping in this place")
            inner = next((v for k, v in node.value if k.value == name and k.tag != _MERGE), None)
            if inner is None or (depth + 1 < len(names) and self._is_empty(inner)):
                for rest in reversed(names[depth + 1 :]):
                    written = f"{{{rest}: {written}}}"
                return (
                    self._added(node, name, written) if inner is None else self._at(inner, written)
                )
            self._check_alone(node, inner)
            node = inner
        return self._at(node, written)

    def _at(self, node: yaml.Node, written: str) -> str:
        """The text with another value in place of a node's."""
        if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
            raise self._refused(node, f"{self.key} has a value of several parts or lines")
        start, end = node.start_mark.index, node.end_mark.index
        space = " " if self._is_empty(node) else ""
        return f"{self.text[:start]}{space}{written}{self.text[end:]}"

    def _added(self, mapping: yaml.MappingNode, name: str, written: str) -> str:
        """The text with one more key, the last one of a mapping."""
        if any(k.tag == _MERGE and self._has(v, name) for k, v in mapping.value):
            raise self._refused(mapping, f"{self.key} comes from a merge (<<)")
        if mapping.flow_style:
            end = mapping.end_mark.index - 1  # the closing brace
            before = self.text[:end].rstrip()
            comma = "" if before.endswith(("{", ",")) else ","
            space = "" if before.endswith("{") else " "
            rest = self.text[len(before) :]
            return f"{before}{comma}{space}{name}: {written}{rest}"
        end = _end(mapping)
        stop = end if self.text[end - 1 : end] == "\n" else self.text.find("\n", end) + 1
        newline = "\r\n" if "\r\n" in self.text else "\n"
        indent = " " * mapping.value[0][0].start_mark.column
        before, rest = (self.text[:stop], self.text[stop:]) if stop else (self.text + newline, "")
        return f"{before}{indent}{name}: {written}{newline}{rest}"

    def _check_alone(self, parent: yaml.Node, node: yaml.Node) -> None:
        """Raise `ConfigError` where a node is used in several places."""
        begins = self.text[node.start_mark.index : node.start_mark.index + 1]
        inside = parent.start_mark.index <= node.start_mark.index <= parent.end_mark.index
        if begins == "&" or not inside:
            raise self._refused(node, f"the value of {self.key} is shared by an anchor or an alias")

    def _has(self, merged: yaml.Node, name: str) -> bool:
        """True if what is merged into a mapping has a key."""
        return any(key.value == name for key in _keys(merged))

    def _is_empty(self, node: yaml.Node) -> bool:
        """True for a value that is left out, after its colon."""
        return isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index

    def _refused(self, node: yaml.Node, why: str) -> ConfigError:
        line = node.start_mark.line + 1
        return ConfigError(f"{self.path}, line {line}: {why}; change {self.key} there yourself")


def _keys(node: yaml.Node) -> Iterator[yaml.Node]:
    """The keys of a mapping, or of a list of mappings, those of its own merges included."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            if key.tag == _MERGE:
                yield from _keys(value)


def _end(node: yaml.Node) -> int:
    """The index behind the last character of a node; a block's mark is where the next begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        if isinstance(last, tuple):
            key, value = last
            is_alias = value.start_mark.index < key.start_mark.index
            return key.end_mark.index if is_alias else _end(value)
        return _end(last)
    return node.end_mark.index
