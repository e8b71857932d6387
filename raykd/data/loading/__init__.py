"""Batches: which sample when (`sampler.py`), and its pixels (`loader.py`), by processes that decode
ahead (`decode_workers.py`).
"""
