"""Tables of plain rows, for terminals, as text and in Markdown."""

import io
from collections.abc import Container, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raykd.core.safe_names import printable_lines

WIDTH = 160  # columns of a table in a file or a pipe


def table_of(
    rows: Sequence[Mapping[str, Any]], text_columns: Container[str] | None = None
) -> Table:
    """Rows of the same columns as a table.

    `text_columns` are aligned to the left; None: those whose first value is no number.
    """
    table = Table(box=None)
    for name in rows[0]:
        # The first value that is there, if any is.
        value = next((row[name] for row in rows if row[name] is not None), 0)
        number = (
            isinstance(value, int | float) if text_columns is None else name not in text_columns
        )
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        texts = (printable_lines("" if value is None else str(value)) for value in row.values())
        table.add_row(*map(Text, texts))  # as it is, not as rich's markup
    return table


def as_text(table: Table) -> str:
    """A table as plain lines."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as a table in Markdown."""
    lines = [[name.replace("_", " ") for name in rows[0]], ["---"] * len(rows[0])]
    lines += [["" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
