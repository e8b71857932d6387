"""Who else works in the same store while a plan is carried out, and who listens."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raykd.recipes import Training
from raykd.record import Record

if TYPE_CHECKING:
    from ray.train import UserCallback


class Company:
    """Nobody."""

    shared = False  # whether others may be making the same artefacts at this moment

    def claiming(self, recipe: Record) -> contextlib.AbstractContextManager[None]:
        """A region in which no one else makes this artefact; it waits for who does already."""
        return contextlib.nullcontext()

    def told(self, run: Training, metrics: Mapping[str, Any]) -> None:
        """Hear of an epoch of a training in this process."""

    def callbacks(self, run: Training) -> "list[UserCallback]":
        """Who hears of the epochs of a training on Ray Train."""
        return []
