"""Published numbers, beside which a report shows ours."""

from typing import Any

from pydantic import Field

from raykd.config.scale import Match
from raykd.core.record import Record


class Published(Record):
    """A published score of students whose recipe has these values; it is no part of a result."""

    match: Match
    """Dotted keys of `run`, each with the value that a student must have there."""
    score: float = Field(ge=0, le=100)
    """Score of the same pair in percent: the headline of the task, after the last epoch."""
    source: str = Field(min_length=1)
    """Paper or page that has the score."""

    def said(self) -> dict[str, Any]:
        """Score and source, as a report has them."""
        return {"score": self.score, "source": self.source}
