"""Ray: the executor, pools of workers, Ray Train, clusters, Ray Tune. No other room imports Ray.

Imports everything but `cli`. Begin with `executor.py`; `units.py` and `pool.py` are its strategies
for one worker, `train.py` for several; `cluster.py` joins or starts a cluster; `sweep/` is for Ray
Tune.
"""

import os
import sys

# A driver survives the death of its raylet, which `cluster_watch` then reports. Ray ends a driver
# silently, with status 1, when a call of the raylet fails and the process that RAY_RAYLET_PID names
# is dead, or, without it, when the driver's parent is process 1, as in a container. A job inherits
# the raylet's. The variable is read when Ray is imported (2.60), and workers are given their own.
if "ray" not in sys.modules:
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
