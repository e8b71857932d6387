"""Where a run trains: one process (`base.py`), one of many with all weights (`ddp.py`), or with a
share of them (`fsdp.py`). The loop cannot tell which.
"""
