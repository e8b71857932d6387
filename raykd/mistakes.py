"""What is wrong with an experiment: all of it at once, each mistake once, with where it stands."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from raykd.errors import ConfigError

# A dotted key -> where it stands, such as "mine.yaml, line 4".
Places = Mapping[str, str]
NOWHERE: Places = MappingProxyType({})
_KEYED = re.compile(r"experiment\.([\w.]*\w)")


class Mistakes:
    """Mistakes in the order in which they were met, and the students that each is about."""

    def __init__(self, places: Places = NOWHERE) -> None:
        self._places = places
        self._found: dict[str, list[str | None]] = {}  # and a student each time

    def add(self, text: str, student: str | None = None) -> None:
        """Take in a mistake, or one a line; `student` is whose it is, where that is not plain."""
        for line in text.splitlines():
            self._found.setdefault(line, []).append(student)

    @contextlib.contextmanager
    def collecting(self, student: str | None = None) -> Iterator[None]:
        """A region whose `ConfigError` is a mistake among others."""
        try:
            yield
        except ConfigError as error:
            self.add(str(error), student)

    def raise_all(self) -> None:
        """Raise them as one `ConfigError`, a line each, if there are any."""
        if self._found:
            raise ConfigError("\n".join(map(self._line, self._found)))

    def _line(self, text: str) -> str:
        """A mistake with its students and its place."""
        first, *others = self._found[text]
        text = text.rstrip(".") if self._places or first or others else text
        if first is not None or others:
            text += f"; in {first or 'one student'}"
        if others:
            text += f" and {len(others):,} more student{'s' if len(others) > 1 else ''}"
        keyed = _KEYED.match(text)
        place = place_of(keyed[1], self._places) if keyed else None
        return text if place is None else f"{text} ({place})"


def place_of(key: str, places: Places) -> str | None:
    """Where a dotted key stands, or the part that it lies in; None where that is not known.

    A key of `run` that a grid or a search varies stands there.
    """
    parts = key.split(".")
    inside = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for name in inside:
        for varied in (f"grid.{name}", f"search.{name}", name):
            if varied in places:
                return places[varied]
    return None
