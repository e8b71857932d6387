"""Text and JSON that other programs wrote: read, or refused with a sentence."""

import json
from typing import Any

from raykd.core.errors import DataError

_SHOWN = 60  # characters of a value that are repeated in a message, at most


def decode_text(data: bytes, origin: str) -> str:
    """The text of UTF-8 bytes, without a byte order mark.

    Raises `DataError`, beginning with `origin`, for bytes in another encoding.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: cannot be read as text, expected UTF-8 ({error}); save it as UTF-8"
        ) from error


def parse_json(data: bytes, origin: str) -> Any:
    """The value that a JSON text writes. Raises `DataError`, beginning with `origin`."""
    try:
        return json.loads(data)
    except RecursionError as error:
        why, cause = "too many brackets within each other", error
    except ValueError as error:
        why, cause = str(error), error
    raise DataError(f"{origin}: cannot be read as JSON ({why})") from cause


def excerpt(anything: object) -> str:
    """The text of a value for messages, cut if it is long."""
    try:
        written = repr(anything)
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(anything).__name__}"
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}..."


def is_text(anything: object) -> bool:
    """True for a text that can be encoded, also one that stands for bytes of a file's name.

    JSON can write halves of characters, which are no text.
    """
    if not isinstance(anything, str):
        return False
    try:
        anything.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
