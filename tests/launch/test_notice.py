"""A node that is about to be taken away: a checkpoint is kept in time."""

import pytest

from tests.launch.marks import RAY

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(1200)]
NEVER = 1e9
