"""Names of files that others wrote down: in a manifest, an index, a listing."""

import re

from raykd.errors import Damaged

_SEPARATORS = re.compile(r"[/\\]")  # Windows' too: what wrote the name may have run there
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


def is_below(name: str) -> bool:
    """Whether a name, with slashes, stays in the folder that it is relative to."""
    away = ".." in _SEPARATORS.split(name) or _ABSOLUTE.match(name) is not None
    return not away and "\0" not in name


def check_below(name: str, root: str) -> None:
    """Raise `Damaged` where a name leaves the folder `root`."""
    if not is_below(name):
        raise Damaged(f"{root}: {name!r} is not the name of a file in there")
