"""YAML that means one thing: a safe loader that refuses what YAML 1.1 and 1.2 read differently."""

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from raykd.core.errors import ConfigError

_DEEPEST = 50  # mappings and lists within each other
_MOST_VALUES = 100_000  # with those that aliases stand for
_LONGEST = 300  # digits of a number
_MERGE = "tag:yaml.org,2002:merge"


class _YamlError(Exception):
    """The error for a mistake in YAML, with its line."""

    def __init__(self, mark: Any, reason: str) -> None:
        self.line, self.reason = mark.line + 1, reason


class _Loader(yaml.SafeLoader):
    """Safe YAML that means one thing: no key twice, no number or boolean that only YAML 1.1 reads.

    1e-4 is a number. What a loader of YAML 1.2 reads as something else (`1:30`, `0x10`, `010`,
    `1_000`, `yes`) is refused, and so is what cannot be laid out as a tree of some size.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark  # pyright: ignore[reportOptionalMemberAccess]
            raise _YamlError(mark, f"more than {_DEEPEST} lists or mappings within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        # A merge (`<<: *defaults`) brings values that the mapping's own keys may replace.
        for key_node in [key for key, _ in node.value if key.tag != _MERGE]:
            key = self.construct_object(key_node, deep=deep)
            if isinstance(key, Hashable):
                if key in seen:
                    raise _YamlError(key_node.start_mark, f"{key!r} is given twice")
                seen.add(key)
        return super().construct_mapping(node, deep)

    def read_bool(self, node: Any) -> bool:
        """Read true or false, in letters that mean it everywhere."""
        value = super().construct_yaml_bool(node)
        if node.value.lower() not in ("true", "false"):
            text = str(value).lower()
            reason = f"{node.value!r} is {text} to YAML 1.1 alone; write {text}, or quote the text"
            raise _YamlError(node.start_mark, reason)
        return value

    def read_number(self, node: Any) -> int | float:
        """Read a decimal number of bounded length."""
        text, whole = node.value, node.tag.endswith(":int")
        if len(text) > _LONGEST:
            raise _YamlError(node.start_mark, f"a number has more than {_LONGEST} digits")
        try:
            value = (super().construct_yaml_int if whole else super().construct_yaml_float)(node)
        except ValueError as error:
            raise _YamlError(node.start_mark, f"not YAML ({error})") from error
        if ":" in text or "_" in text or (whole and not re.fullmatch("[-+]?(0|[1-9][0-9]*)", text)):
            reason = f"{text!r} is {value} to YAML 1.1 alone; write {value} where you mean that "
            raise _YamlError(node.start_mark, reason + "number, or quote the text")
        return value

    def read_text(self, node: Any) -> str:
        """Read text of printable characters."""
        text = super().construct_yaml_str(node)
        for character in text:
            if (character < " " and character not in "\n\t") or "\ud800" <= character <= "\udfff":
                reason = f"the character {ord(character):#06x} cannot stand in text"
                raise _YamlError(node.start_mark, reason)
        return text


_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.read_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.read_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.read_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.read_text)
# YAML 1.1 wants a dot and a sign, as in 1.0e-4. Quoted text, such as a digest, stays text.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_yaml(text: str, path: str = "experiment") -> Any:
    """The value that YAML text describes. Raises `ConfigError`; messages begin with `place`."""
    return read_lines(text, path)[0]


def read_lines(text: str, path: str = "experiment") -> tuple[Any, dict[str, int]]:
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
                raise _YamlError(node.start_mark, f"more than {_MOST_VALUES:,} values")
        return loader.construct_document(node), lines
    except _YamlError as error:
        raise ConfigError(f"{path}, line {error.line}: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = ", ".join(filter(None, (error.problem, error.context)))
        raise ConfigError(f"{path}{line}: not YAML ({reason})") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}, line {line}: the character {ord(text[error.position]):#06x} cannot stand in "
            "YAML; remove it"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # The last three are PyYAML's own where a value is not of the kind that its tag says.
        raise ConfigError(f"{path}: not YAML ({error})") from error


def _keys(node: Any, prefix: str, parents: list[Any]) -> Iterator[tuple[str, int]]:
    """Every dotted key of a node with its line, those of merges after a mapping's own.

    Raises `_YamlError` where an alias makes a node one of its own `parents`.
    """
    if any(node is parent for parent in parents):
        raise _YamlError(node.start_mark, "an alias refers to a mapping or list that contains it")
    parents = [*parents, node]
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _key(item, f"{prefix}.{number}", item, parents)
    elif isinstance(node, yaml.MappingNode):
        merges = [value for key, value in node.value if key.tag == _MERGE]
        for key, value in node.value:
            if key.tag != _MERGE:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                yield from _key(key, f"{prefix}.{name}", value, parents)
        for merge in merges:
            for part in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
                yield from _key(part, prefix, part, parents)


def _key(marked: Any, key: str, value: Any, parents: list[Any]) -> Iterator[tuple[str, int]]:
    """A dotted key with the line of the node that is `marked`, then the keys of its value."""
    key = key.removeprefix(".")
    yield key, marked.start_mark.line + 1
    yield from _keys(value, key, parents)
