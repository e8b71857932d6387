"""Tables from names to things. A miss suggests the nearest name; a clash is an error."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from raykd.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Mapping[str, T], Generic[T]):
    """An ordered table of named things of one kind, such as methods or networks.

    `kind` is the singular noun of its error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Enter `thing` under `name` and return it. Raises `ValueError` where the name is taken."""
        if name in self._things:
            raise ValueError(f"two things want to be the {self.kind} {name!r}")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        """The thing called `name`; a miss is a `ConfigError` that suggests the nearest name."""
        if name not in self._things:
            hint = nearest(name, self._things) or f"; there are: {', '.join(self._things)}"
            raise ConfigError(f"no {self.kind} is called {name!r}{hint}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
