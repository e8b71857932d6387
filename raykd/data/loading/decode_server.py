"""Imported by the process that forks decoding processes, before it forks the first one.

SIGTERM often goes to all processes of a group at once (`timeout`, Slurm). Whoever trains says when
those that decode for it end: a training that keeps a checkpoint first still needs them.
"""

import signal

import raykd.data.loading.decode_workers  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
