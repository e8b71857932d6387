"""Errors whose message is for the person who ran the command.

Each says where, what was expected, what came and what to do. The command line prints the
message without a traceback and exits with `code`; anything else is a defect of ours and
keeps its traceback.
"""

from collections.abc import Iterable, Sequence


class RaykdError(ValueError):
    """Base class: an error that the user can correct."""

    code = 1


class ConfigError(RaykdError):
    """An experiment file, an override or a recipe that cannot be read."""

    code = 2


class DataError(RaykdError):
    """Images or labels that cannot be used; names the file or the row."""

    code = 3


class CacheMismatch(RaykdError):
    """A cache that was made for another recipe, or lacks views or signals."""

    code = 4


class CacheCorrupt(RaykdError):
    """A shard that is missing, truncated or altered; names the file."""

    code = 5


class NoRoom(RaykdError):
    """Not enough disk, memory, processors or GPUs."""

    code = 6


class WorkFailed(RaykdError):
    """A worker failed more often than `scale.max_failures` allows; finished work is kept."""

    code = 7


class ExportFailed(RaykdError):
    """A network that cannot be written in a format, or gives other outputs when read back."""

    code = 8


class Unreachable(RaykdError):
    """Storage or a server that does not answer or refuses: network, credentials, lost mount."""

    code = 9


class Damaged(CacheCorrupt):
    """A remote file whose bytes do not match its checksum."""


def text_of(error: BaseException) -> str:
    """The text of any error; the name of its class where it has none."""
    return str(error).strip() or type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of any error's text."""
    return text_of(error).splitlines()[-1]


def folded(errors: Sequence[RaykdError]) -> RaykdError:
    """One error for several: each message once, and the status that all have in common.

    The first error itself where all messages are equal, `WorkFailed` where statuses differ.
    """
    lines = dict.fromkeys(map(str, errors))
    if len(lines) == 1:
        return errors[0]
    return of_codes((error.code for error in errors), "\n".join(lines))


def of_codes(codes: Iterable[int], message: str) -> RaykdError:
    """An error of the status that all `codes` name, `WorkFailed` where they differ."""
    kinds = {kind.code: kind for kind in (RaykdError, *RaykdError.__subclasses__())}
    distinct = set(codes)
    kind = kinds.get(distinct.pop(), WorkFailed) if len(distinct) == 1 else WorkFailed
    return kind(message)
