"""Hosts that a run trains on: one process, or one of many with all weights or a share of them.

`base.py` has the protocols, replicated weights (DDP) and the host of one process, `group.py` the
host of one worker among many, `fsdp.py` sharded weights. The loop cannot tell which it has.
"""
