"""A pickle that runs code when it is read, and the file that shows whether it did."""

from pathlib import Path


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)
