"""Tasks: what a network's outputs are for, and numbers that judge them.

Imports `core`, `storage`, `models` and `methods`. `probes.py` judges embeddings by labels.
"""
