"""Plugins in a store: kept with the artefacts that were made with them, for people to read.

    root/plugins/<digest>.py      the file
    root/plugins/<digest>.json    its name

Nothing in here executes them.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raykd.core import plugins
from raykd.core.errors import ConfigError

FOLDER = "plugins"
_DIGEST = re.compile("[0-9a-f]{64}")


def files_of(plugin: plugins.Plugin) -> dict[str, bytes]:
    """The files of a plugin in `FOLDER`, by name; the one that has its name is the last."""
    source = {} if plugin.source is None else {f"{plugin.digest}.py": plugin.source}
    name = json.dumps({"name": plugin.name}) + "\n"
    return source | {f"{plugin.digest}.json": name.encode()}


def check_loaded(folder: Path, data: bytes) -> None:
    """Raise `ConfigError` where a recipe, as JSON, uses a plugin that is not loaded.

    folder: that of the artefact.
    """
    if b'"plugins"' not in data:
        return
    known = {plugin.digest for plugin in plugins.loaded()}
    with contextlib.suppress(RecursionError):  # no recipe, which reading it says
        for digest in digests_in(json.loads(data)):
            if digest not in known:
                raise ConfigError(_missing(folder, digest))


def digests_in(value: Any) -> Iterator[str]:
    """The digests that a recipe and those within it name; what is no digest is left out."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "plugins" and isinstance(inner, list):
            digests = (digest for digest in inner if isinstance(digest, str))
            yield from filter(_DIGEST.fullmatch, digests)
        elif isinstance(inner, dict | list):
            yield from digests_in(inner)


def _missing(folder: Path, digest: str) -> str:
    """A sentence on a plugin that an artefact needs."""
    path = folder.parents[1] / FOLDER / f"{digest}.py"
    try:
        name = str(json.loads(path.with_suffix(".json").read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        name = "a plugin"
    given = [plugin for plugin in plugins.loaded() if plugin.name == name]
    other = f"; the {name} that is loaded has another content" if given else ""
    there = (
        f" The store keeps the file: read it, then give --plugin {path}" if path.is_file() else ""
    )
    return (
        f"{folder}: made with {name} (SHA-256 {digest[:12]}...), which is not loaded{other}; give "
        f"--plugin {name if name != 'a plugin' else 'FILE'}.{there}"
    )
