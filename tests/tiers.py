"""Which cases of a law the default run takes; the slow one takes the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test: all cases, those that are not `quick` marked as slow."""
    cases = [*cases]
    unknown = [case for case in quick if case not in cases]
    assert not unknown, f"not among the cases: {unknown}"
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases]
