"""Before anything is computed: what a set of students needs, what would fail, how long it takes.

Imports `training` and what is below it. Begin with `plan.py`, then `preflight.py`.
"""
