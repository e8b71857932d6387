"""Experiment files: YAML, overrides and grids become recipes; mistakes become sentences.

Imports `recipes` and what is below it. Begin with `experiment.py`; `resolve.py` adds what only
files can tell, `scale.py` is how the work is spread.
"""
