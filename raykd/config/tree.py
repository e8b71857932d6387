"""The tree of an experiment file before any recipe of it is read: text, YAML, overrides, keys.

Imports neither torch nor the recipes, so that mistakes here are told at once.
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raykd.config.messages import NOWHERE, Mistakes, Places
from raykd.config.overrides import PARTS, check_parts, override
from raykd.config.strict_yaml import read_lines
from raykd.core.errors import ConfigError
from raykd.core.registry import nearest

# Keys that stand for others before a recipe is read: no fields of it.
_SHORTHANDS = {"rco", "assistants"}


def read_text(path: Path) -> str:
    """The text of an experiment file. Raises `ConfigError`."""
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text, and so no experiment file") from error
    except ValueError as error:  # a name that no file can have
        raise ConfigError(f"{str(path)!r}: cannot be read ({error})") from error


def tree_of(text: str, path: str | None = None) -> tuple[dict[str, Any], Places]:
    """The tree that a file's YAML is, and the place of each of its keys. Raises `ConfigError`."""
    tree, lines = _read(text, path or "experiment")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path or 'experiment'}: expected the keys {', '.join(PARTS)}")
    places = {key: f"{path}, line {line}" for key, line in lines.items()} if path else {}
    return copy.deepcopy(tree), places


_read = functools.lru_cache(maxsize=1)(read_lines)  # commands check a file before they load it


def overridden(
    tree: dict[str, Any], overrides: Iterable[str], places: Places = NOWHERE
) -> dict[str, str]:
    """Write overrides into a tree, and check its parts; the places of the keys that it has then.

    Raises `ConfigError`.
    """
    places, in_file = dict(places), bool(places)
    for setting in overrides:
        override(tree, setting)
        key = setting.partition("=")[0]
        for other in [other for other in places if f"{other}.".startswith(f"{key}.")]:
            del places[other]
        places |= {key: f"{key}=... on the command line"} if in_file else {}
    mistakes = Mistakes(places)
    with mistakes.collecting():
        check_parts(tree)
    mistakes.raise_all()
    return places


def check(path: Path, overrides: Iterable[str], schema: Mapping[str, Any] | None = None) -> None:
    """Raise `ConfigError` for what is wrong with a file before its values are looked at.

    With the JSON `schema` of experiment files, keys that no record has are named, all of them.
    """
    tree, places = tree_of(read_text(path), str(path))
    mistakes = Mistakes(overridden(tree, overrides, places))
    for line in unknown_keys(tree, schema) if schema is not None else ():
        mistakes.add(line)
    mistakes.raise_all()


def unknown_keys(tree: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    """A sentence on each key of a tree that its schema does not know, as reading it would say.

    Values are passed over where a schema has several forms for them and none is named.
    """
    defined = schema["$defs"]
    axes = (axis for part in ("grid", "search") for axis in tree.get(part) or {})
    varied = {f"experiment.{axis}" for axis in axes}  # other values stand there

    def form_of(node: Mapping[str, Any], value: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of the object that a value is to be; {} where that is not plain."""
        while node:
            if "$ref" in node:
                node = defined[node["$ref"].rpartition("/")[2]]
            elif "if" in node:
                given = [value[key] for key in node["if"]["required"] if key in value]
                if not all(given):  # an empty panel, say
                    return {}
                node = node["then" if given else "else"]
            elif "discriminator" in node:
                named = node["discriminator"]["mapping"].get(str(value.get("name")))
                node = {} if named is None else {"$ref": named}
            elif "anyOf" in node or "oneOf" in node:
                forms = [*node.get("anyOf", ()), *node.get("oneOf", ())]
                forms = [form for form in forms if _is_object(form)]
                node = forms[0] if len(forms) == 1 else {}
            else:
                return node
        return {}

    def walk(node: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield from walk(node.get("items") or {}, item, f"{path}.{number}")
        if not isinstance(value, dict):
            return
        node = form_of(node, value)
        known = node.get("properties", {})
        closed = node.get("additionalProperties") is False
        for key in known:
            if key in value and f"{path}.{key}" not in varied:
                yield from walk(known[key], value[key], f"{path}.{key}")
        for key in value if closed else ():
            if key not in known:
                fields = [field for field in known if field not in _SHORTHANDS]
                hint = nearest(str(key), fields) or f"; there are: {', '.join(sorted(fields))}"
                yield f"{path}.{key}: no such key{hint}"

    for part in ("data", "scale", "run", "sweep"):
        yield from walk(schema["properties"][part], tree.get(part), f"experiment.{part}")


def _is_object(form: Mapping[str, Any]) -> bool:
    """True for a form of a value that may have keys."""
    return any(key in form for key in ("$ref", "if", "anyOf", "oneOf", "properties"))
