"""Maps from the classes of the data to those of a teacher, as a file writes them, in indices.

The forms are in `recipes.teacher.read_classes`. Every mistake is a `ConfigError` of one sentence.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raykd.core.errors import ConfigError
from raykd.core.registry import nearest
from raykd.models.weights_config import Names, synsets
from raykd.recipes.teacher import Classes

NAMES, WORDNET = "names", "wordnet"
Groups = tuple[tuple[int, ...], ...]  # the teacher's indices for each class of the data
_SHOWN = 60  # characters of a name in a message


def resolve_classes(classes: Classes, names: Sequence[str], outputs: int, theirs: Names) -> Groups:
    """The teacher's indices, at least one, for each of the data's classes `names`, in their order.

    `outputs` is the number of classes of the teacher, `theirs` all names of each where they are
    known. Raises `ConfigError` for a class that is missing, unknown or named twice.
    """
    if not outputs:
        raise ConfigError("the teacher is an encoder, which has no classes; leave the key out")
    if classes == NAMES:
        groups = [(_find(name, theirs, outputs),) for name in names]
    elif classes == WORDNET:
        ids = tuple((one,) for one in synsets(outputs))
        groups = [(_find(name, ids, outputs),) for name in names]
    elif isinstance(classes, str):
        return resolve_classes(read_table(classes), names, outputs, theirs)
    elif all(isinstance(item, int) for row in classes for item in row):
        groups = [tuple(item for item in row if isinstance(item, int)) for row in classes]
        if len(groups) != len(names):
            raise ConfigError(
                f"expected an index, or a list of them, for each of the {len(names)} classes of "
                f"the data, got {len(groups)}"
            )
    else:
        groups = _by_name(_joined(classes), names, outputs, theirs)
    _check_indices(groups, names, outputs)
    return tuple(groups)


def read_table(path: str) -> Classes:
    """The rows of a CSV file: a class of the data, and a name or an index of the teacher's.

    A first row whose first cell is "class" is a header. Raises `ConfigError`.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        lines = csv.reader(text.splitlines(), skipinitialspace=True)
        rows = [row for row in lines if any(map(str.strip, row))]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"expected {NAMES}, {WORDNET} or the path of a CSV file; {path} cannot be read as one "
            f"({getattr(error, 'strerror', None) or error})" + nearest(path, (NAMES, WORDNET))
        ) from error
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not all(map(str.strip, row)):
            raise ConfigError(
                f"{path}: expected two columns, the data's class and the teacher's class or index; "
                f"row {number} is {','.join(row)[:_SHOWN]!r}"
            )
    if rows and rows[0][0].strip().casefold() == "class":
        rows = rows[1:]
    if not rows:
        raise ConfigError(f"{path}: expected a row for each class of the data, found none")
    return tuple((name.strip(), other.strip()) for name, other in rows)


def _joined(rows: Sequence[Sequence[int | str]]) -> dict[str, list[int | str]]:
    """The teacher's classes by the data's; several rows of one class are put together."""
    groups: dict[str, list[int | str]] = {}
    for name, *others in rows:
        groups.setdefault(str(name), []).extend(others)
    return groups


def _by_name(
    groups: Mapping[str, Sequence[int | str]], names: Sequence[str], outputs: int, theirs: Names
) -> list[tuple[int, ...]]:
    """The indices of each of the data's classes, from names or indices by its name."""
    for name in groups:
        if name not in names:
            raise ConfigError(
                f"the data have no class {_short(name)}"
                + (nearest(name, names) or f"; they are called {_first(names)}")
            )
    missing = [name for name in names if not groups.get(name)]
    if missing:
        raise ConfigError(
            f"expected a class of the teacher's for each of the {len(names)} classes of the data; "
            f"{len(missing)} have none, the first is {_short(missing[0])}"
        )
    return [
        tuple(
            item if isinstance(item, int) else _find(item, theirs, outputs, name)
            for item in groups[name]
        )
        for name in names
    ]


def _find(wanted: str, names: Names, outputs: int, name: str | None = None) -> int:
    """The index of the class that has a name: as it is written, or in another case.

    For a class `name` of the data, a number that is no name of the teacher's is an index; None: the
    name is the data's own.
    """
    whose = "" if name is None else f" (for the data's class {_short(name)})"
    for like in (str, _plainly):
        found = [i for i, some in enumerate(names) if like(wanted) in map(like, some)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"{_short(wanted)}{whose} is the name of {len(found)} of the teacher's classes, "
                f"{', '.join(map(str, found))}; give the index"
            )
    if name is not None and wanted.isdecimal():
        return int(wanted)
    if not names:
        subject = "" if name is None else f"{_short(wanted)}{whose} is no index, and "
        raise ConfigError(
            f"{subject}the teacher's weights do not name their {outputs} classes; give {WORDNET} "
            "for a network of ImageNet, a list of indices, or {class: index}"
        )
    every = [one for some in names for one in some]
    raise ConfigError(
        f"none of the teacher's {outputs} classes is called {_short(wanted)}{whose}"
        + (nearest(wanted, every) or f"; they are called {_first(every)}")
    )


def _plainly(name: str) -> str:
    """A name without its case, and with spaces for underscores, as folders have them."""
    return name.casefold().replace("_", " ").strip()


def _check_indices(groups: Sequence[Sequence[int]], names: Sequence[str], outputs: int) -> None:
    """Raise `ConfigError` for an index that the teacher lacks, or that stands twice."""
    for name, group in zip(names, groups, strict=True):
        for index in group:
            if index >= outputs:
                raise ConfigError(
                    f"{index} for the class {_short(name)} is out of range; the teacher's "
                    f"{outputs} classes are numbered from 0"
                )
    count = Counter(index for group in groups for index in group)
    index, times = count.most_common(1)[0]
    if times > 1:
        whose = [name for name, group in zip(names, groups, strict=True) if index in group]
        if len(whose) == 1:
            raise ConfigError(f"{index} stands {times} times for {_short(whose[0])}; name it once")
        raise ConfigError(
            f"{index} stands {times} times, for {' and '.join(map(_short, whose[:2]))}; a class of "
            "the teacher's can stand for one class of the data"
        )


def _first(names: Sequence[str]) -> str:
    """Some names, shortened."""
    return ", ".join(name[:_SHOWN] for name in names[:3]) + ", ..." * (len(names) > 3)


def _short(name: str) -> str:
    return repr(name[:_SHOWN])
