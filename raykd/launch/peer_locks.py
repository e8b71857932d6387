"""Who else works in the same store while a plan is carried out, and who listens."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raykd.core.record import Recipe
from raykd.core.shutdown import Notice, noticed
from raykd.recipes import Training
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.tracking.logger import Logger

if TYPE_CHECKING:
    from ray.train import UserCallback


class Company:
    """Other drivers, perhaps, that know nothing of this one."""

    shared = False  # whether others need what this one makes, at this moment
    trial: str | None = None  # whose work it is, in a sweep
    loggers: Sequence[Logger] = ()  # of trainings in this process

    def __init__(self, store: Store, say: Callable[[str], None] = lambda text: None) -> None:
        self._store = store
        self._say = say

    def claiming(self, recipe: Recipe) -> contextlib.AbstractContextManager[bool]:
        """A region in which no one else makes this artefact; whether it waited for who did."""
        return locks.held(self._store, recipe, "maker", self._say)

    def trying(self, recipe: Recipe) -> contextlib.AbstractContextManager[bool]:
        """The same region, where nobody is in it; False, at once, where somebody is."""
        return locks.held(self._store, recipe, "maker", wait=False)

    def noticing(self) -> contextlib.AbstractContextManager[Notice]:
        """A region that hears when this process is about to go, while it trains."""
        return noticed()

    def callbacks(self, run: Training) -> "list[UserCallback]":
        """Who hears of the epochs of a training on Ray Train."""
        return []
