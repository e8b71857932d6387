"""A node that is about to be taken away: a checkpoint is kept in time."""

import random
import threading
import time

import pytest

from experiments.faults import Site
from raykd.engine.journal import Journal
from raykd.experiment import Experiment
from raykd.launch.work import carry_out
from raykd.progress import Teller
from raykd.recipes import Optim
from raykd.scale import Scale
from raykd.store import Store
from tests.launch.marks import RAY
from tests.small import prepare, student_run

pytestmark = [*RAY, pytest.mark.cluster, pytest.mark.timeout(1200)]
NEVER = 1e9
