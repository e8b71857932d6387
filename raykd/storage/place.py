"""The store that is meant where none is named."""

import os


def default_place() -> str:
    """$RAYKD_STORE, or the folder raykd-store where Python runs."""
    return os.environ.get("RAYKD_STORE", "raykd-store")
