"""Ray: clusters, pools of workers, Ray Train, Ray Tune. The only room that imports it.

Imports everything but `cli`. Begin with `executor.py`;
`cluster.py` joins or starts a cluster; `sweep/` is for Ray Tune.
"""
