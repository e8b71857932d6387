"""Class numbers of labels that are written as integers or texts.

One rule holds for a whole dataset, all its files and splits: where any label is an integer, a
label is the number of its class, also one that is the text of an integer; otherwise labels are
names.

Shapes: N images.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources.foreign_text import excerpt, is_text

Label = Any  # value in a file: an integer or a text, or one that is refused
Origin = Callable[[int], str]  # file and position of a row, for messages
_Row = tuple[int, Origin, int]  # number of kinds of labels before it, origin of its split, row
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NAMED = 20  # classes, at most, that a message lists


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names of classes: by number where all are integers, else as texts."""
    distinct = {*names}
    if all(map(_INTEGER.fullmatch, distinct)):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def parse_names(value: Any, origin: str) -> tuple[str, ...]:
    """Class names that a JSON value declares: a list, {number: name} or {name: number}.

    Raises `DataError`, beginning with `origin`, for another value.
    """
    names: Any = value
    if isinstance(value, dict):
        if all(type(number) is int for number in value.values()):
            value = {str(number): name for name, number in value.items()}
        names = [value.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(map(is_text, names)):
        raise DataError(
            f"{origin}: expected a list of class names, or numbers from 0 and names, found "
            f"{excerpt(value)}"
        )
    return tuple(names)


def number_labels(
    splits: Mapping[str, tuple[Sequence[Label], Origin]], names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The class names of a dataset and, for each split, the class of every label, int64 [N].

    `names` are those that the dataset declares; otherwise training labels tell them: texts in
    their order, or numbers up to the largest. Where no label was read, each being None, there are
    no names, and all numbers are 0. Raises `DataError`, naming the row, for a label that is no
    class, and where some labels are integers and others are not.
    """
    if all(label is None for labels, _ in splits.values() for label in labels):
        return (), {split: np.zeros(len(labels), np.int64) for split, (labels, _) in splits.items()}
    first = _first_rows(splits)
    if int in first:
        numbers = {text: _number(text, names, first) for text in first if isinstance(text, str)}
        names = names or _names_up_to(*splits["train"], numbers)
    else:
        names = names or sort_names(splits["train"][0])
        numbers = {name: number for number, name in enumerate(names)}
    twice = {name for name, count in Counter(names).items() if count > 1}
    columns = {}
    for split, (labels, origin) in splits.items():
        column = columns[split] = np.empty(len(labels), dtype=np.int64)
        for row, label in enumerate(labels):
            number = numbers.get(label) if isinstance(label, str) else int(label)
            if number is None or label in twice:
                why = "names two classes" if label in twice else "is no class"
                raise DataError(
                    f"{origin(row)}: label {excerpt(label)} {why}; {_list_classes(names)}"
                )
            if not 0 <= number < len(names):
                hint = "; -1 often marks images whose class is unknown" if number == -1 else ""
                raise DataError(
                    f"{origin(row)}: label {excerpt(label)} is out of range; the {len(names)} "
                    f"classes are numbered from 0{hint}"
                )
            column[row] = number
    return names, columns


def _first_rows(splits: Mapping[str, tuple[Sequence[Label], Origin]]) -> dict[Label, _Row]:
    """The first row of each label that is a text, and of any integer, under the key `int`."""
    first: dict[Label, _Row] = {}
    for labels, origin in splits.values():
        for row, label in enumerate(labels):
            if not isinstance(label, int) and not is_text(label):
                raise DataError(
                    f"{origin(row)}: label {excerpt(label)} is no class; expected integers or "
                    "strings"
                )
            key = label if isinstance(label, str) else int
            if key not in first:
                first[key] = (len(first), origin, row)
    return first


def _number(text: str, names: tuple[str, ...], first: Mapping[Label, _Row]) -> int:
    """The class of a text in a dataset that has integers, too."""
    by_name = names.index(text) if text in names else None
    by_number = int(text) if _INTEGER.fullmatch(text) else None
    numbers = {number for number in (by_name, by_number) if number is not None}
    if len(numbers) == 1:
        return numbers.pop()
    kinds = {"an integer": first[int], f"the text {excerpt(text)}": first[text]}
    earlier, later = sorted(kinds, key=lambda kind: kinds[kind][0])
    origins = {kind: origin(row) for kind, (_, origin, row) in kinds.items()}
    raise DataError(
        f"{origins[later]}: the label is {later}, but that of {origins[earlier]} is {earlier}; "
        "write all labels as integers, or all as texts"
    )


def _names_up_to(
    labels: Sequence[Label], origin: Origin, numbers: Mapping[str, int]
) -> tuple[str, ...]:
    """The numbers from 0 to the largest training label, as names."""
    values = [numbers[label] if isinstance(label, str) else int(label) for label in labels]
    largest = max(values, default=-1)
    if largest >= len(labels):
        raise DataError(
            f"{origin(values.index(largest))}: label {excerpt(largest)} is out of range; "
            f"{len(labels)} rows cannot fill the classes from 0 to that"
        )
    return tuple(str(number) for number in range(largest + 1))


def _list_classes(names: tuple[str, ...]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return f"there are {', '.join(names[:_NAMED])}{more}"
