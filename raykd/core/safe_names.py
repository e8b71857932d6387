"""Checks and escapes of names from outside: files in a manifest or a listing, folders, classes."""

import re

from raykd.core.errors import Damaged

_SEPARATORS = re.compile(r"[/\\]")  # Windows' too: what wrote the name may have run there
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


def is_below(name: str) -> bool:
    """True if a relative name, with slashes, stays in its folder."""
    away = ".." in _SEPARATORS.split(name) or _ABSOLUTE.match(name) is not None
    return not away and "\0" not in name


def check_below(name: str, root: str) -> None:
    """Raise `Damaged` where a name leaves the folder `root`."""
    if not is_below(name):
        raise Damaged(f"{root}: {name!r} is not the name of a file in there")


def text(name: str) -> str:
    r"""A file's name as text, with bytes that are not UTF-8 written as \xff."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def printable(name: str) -> str:
    r"""A name for messages and terminals: characters that cannot be printed are escaped.

    Control characters, marks that turn text around and bytes that are not UTF-8 are written as in
    Python: \x1b, \n, \u202e, \xff.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte, as Python has it in names of files
        letter = chr(ord(letter) - 0xDC00)
    return letter.encode("unicode_escape").decode()


def printable_lines(text: str) -> str:
    """Text of several lines for a terminal: `printable` applied to each line."""
    return "\n".join(map(printable, text.split("\n")))
