"""Preload of the fork server: imported before it forks the first decoding process.

SIGTERM often goes to all processes of a group at once (`timeout`, Slurm). It is ignored here: a
training that writes a checkpoint before it ends still needs its decoding processes.
"""

import signal

import raykd.data.loading.decode_workers  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
