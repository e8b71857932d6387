"""Errors whose message is for the person who ran the command.

Each says where, what was expected, what came and what to do. The command line prints the
message without a traceback and exits with `code`; anything else is a defect of ours and
keeps its traceback.
"""


class RaykdError(ValueError):
    """The root: something that the user can mend."""

    code = 1


class ConfigError(RaykdError):
    """An experiment file, an override or a recipe that cannot be read."""

    code = 2


class DataError(RaykdError):
    """Images or labels that cannot be used; names the file or the row."""

    code = 3


class CacheMismatch(RaykdError):
    """A cache that was made for another recipe, or lacks what is asked of it."""

    code = 4


class CacheCorrupt(RaykdError):
    """A shard that is missing, truncated or altered; names the file."""

    code = 5


class NoRoom(RaykdError):
    """Not enough disk, memory, processors or GPUs for what was asked."""

    code = 6


class WorkFailed(RaykdError):
    """A worker failed more often than `scale.max_failures` allows; what was finished is kept."""

    code = 7


class ExportFailed(RaykdError):
    """A network that cannot be written in a format, or answers otherwise once it is read back."""

    code = 8


class Unreachable(RaykdError):
    """A place that does not answer, or refuses: network, credentials, bucket; a mount that went."""

    code = 9


class Damaged(CacheCorrupt):
    """A file elsewhere whose bytes are not those that its checksum was made of."""
