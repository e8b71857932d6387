"""The caches that a run reads, opened before it reads them."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future

from raykd.core.futures import begun
from raykd.core.types import Look
from raykd.outputs.reader import OutputsCache
from raykd.recipes import StudentRun


class CachePrefetch:
    """The caches of one of a run's anchors at a time, and in the background what comes next.

    What is opened in the background is files and no network: making one would draw from the
    generator that the training draws from.
    """

    def __init__(
        self, run: StudentRun, opened: Callable[[int], dict[Look, list[OutputsCache]]]
    ) -> None:
        """`opened` opens the caches that the anchor of an epoch has, from then on."""
        self._run = run
        self._open = opened
        self._caches: dict[int, Future[dict[Look, list[OutputsCache]]]] = {}  # by anchor

    def at(self, epoch: int) -> dict[Look, list[OutputsCache]]:
        """The caches of an epoch; those of the anchors before are let go."""
        anchor = self._run.anchor_at(epoch)
        for before in [one for one in self._caches if one < anchor]:
            del self._caches[before]
        if anchor not in self._caches:
            self._caches[anchor] = begun(lambda: self._begun(epoch))
        return self._caches[anchor].result()

    def look_ahead(self, epoch: int) -> None:
        """Begin to open the views of an epoch and of the one after it."""
        run, following = self._run, epoch + 1
        now = self.at(epoch)
        _prefetch(now, run.view_at(epoch))
        if following == run.optim.epochs:
            return
        anchor = run.anchor_at(following)
        if anchor == run.anchor_at(epoch):
            _prefetch(now, run.view_at(following))
        elif anchor not in self._caches:
            self._caches[anchor] = begun(lambda: self._begun(following))

    def _begun(self, epoch: int) -> dict[Look, list[OutputsCache]]:
        """The caches of an epoch's anchor, whose first view is being opened."""
        caches = self._open(epoch)
        _prefetch(caches, self._run.view_at(epoch))
        return caches


def _prefetch(caches: dict[Look, list[OutputsCache]], view: int) -> None:
    """Begin to open a view of every cache."""
    for cache in itertools.chain.from_iterable(caches.values()):
        cache.prefetch(view)
