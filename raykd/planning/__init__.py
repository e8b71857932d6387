"""Plans of the work that students need, checks of it, estimates of its time, size and cost.

Imports `training` and what is below it. Begin with `plan.py`, then `preflight.py`;
`remaining.py` counts what the store lacks.
"""
