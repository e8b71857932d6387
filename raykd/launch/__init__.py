"""Ray: the executor, pools of workers, Ray Train, clusters, Ray Tune. No other room imports Ray.

Imports everything but `cli`. Begin with `executor.py`; `units.py` and `pool.py` are its strategies
for one worker, `train.py` for several; `cluster.py` joins or starts a cluster; `sweep/` is for Ray
Tune.
"""
