"""Tables from names to things. A miss suggests the nearest name; a clash is an error."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from raykd.core.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Mapping[str, T], Generic[T]):
    """An ordered table of named things of one kind, such as methods or networks.

    `kind` is the singular noun of its error messages. A thing is listed by its name; aliases find
    it, too. Things from plugins have an origin: the digest of the plugin.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._names: dict[str, str] = {}  # a name or an alias -> the name
        self._origins: dict[str, str] = {}  # by name

    def add(self, name: str, thing: T, aliases: Sequence[str] = (), origin: str = "") -> T:
        """Enter `thing` under `name` and `aliases`, and return it.

        Raises `ValueError`, and enters nothing, where one of them is taken.
        """
        names = dict.fromkeys((name, *aliases), name)
        for other in names:
            if other in self._names:
                raise ValueError(f"two things want to be the {self.kind} {other!r}")
        self._names |= names
        self._things[name] = thing
        if origin:
            self._origins[name] = origin
        return thing

    def remove(self, name: str) -> None:
        """Take out the thing that is listed as `name`, with its aliases."""
        self._names = {other: listed for other, listed in self._names.items() if listed != name}
        self._origins.pop(name, None)
        del self._things[name]

    def origin(self, name: str) -> str:
        """Digest of the plugin that the thing with this name or alias is from; else empty."""
        return self._origins.get(self._names.get(name, name), "")

    def canonical(self, name: str) -> str:
        """The name by which the thing called `name` is listed.

        A miss is a `ConfigError` that suggests the nearest name or alias.
        """
        if name not in self._names:
            hint = nearest(name, self._names) or f"; there are: {', '.join(self._things)}"
            raise ConfigError(f"no {self.kind} is called {name!r}{hint}")
        return self._names[name]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of the thing that is listed as `name`."""
        return tuple(alias for alias, listed in self._names.items() if listed == name != alias)

    def __getitem__(self, name: str) -> T:
        """The thing with this name or alias; a miss is a `ConfigError`, as in `canonical`."""
        return self._things[self.canonical(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
