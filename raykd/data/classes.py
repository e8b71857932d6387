"""From labels as they are written, integers or texts, to the numbers of classes.

Shapes: N images.
"""

from collections.abc import Callable, Sequence

import numpy as np

from raykd.errors import DataError

Label = int | str
Origin = Callable[[int], str]  # where a row lies, for people


def class_names(labels: Sequence[Label], origin: Origin) -> tuple[str, ...]:
    """The classes that training labels tell: texts, sorted, or numbers up to the largest."""
    if any(isinstance(label, str) for label in labels):
        return tuple(sorted({str(label) for label in labels}))
    largest = max((label for label in labels if isinstance(label, int)), default=-1)
    if largest >= len(labels):
        raise DataError(
            f"{origin(labels.index(largest))}: label {largest} is out of range; "
            f"{len(labels)} rows cannot fill the classes from 0 to that"
        )
    return tuple(str(number) for number in range(largest + 1))


def numbers(labels: Sequence[Label], names: tuple[str, ...], origin: Origin) -> np.ndarray:
    """The class of every label, int64 [N]. Raises `DataError` for one that is no class."""
    known = {name: number for number, name in enumerate(names)}
    found = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        if isinstance(label, str) and label in known:
            found[row] = known[label]
        elif isinstance(label, int):
            found[row] = label
        else:
            raise DataError(
                f"{origin(row)}: label {label!r} is no class; "
                + (f"there are {', '.join(names)}" if names else "expected integers or strings")
            )
    return found
