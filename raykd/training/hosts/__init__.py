"""Hosts that a run trains on: one process, or one of many with all weights or a share of them.

`base.py` has the protocol and the host of one process, `ddp.py` and `fsdp.py` those of many. The
loop cannot tell which it has.
"""
