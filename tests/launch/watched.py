"""A cluster, two runs and a sweep in it, for whoever watches; a process of its own.

Called as: watched.py RUN BACKBONE SWEEP STORE FOLDER. Says "over" when all is done, and then waits
for a line before the cluster goes.
"""

import os
import shutil
import sys

if __name__ == "__main__":
    # Of a plain cluster, which would otherwise leave a token in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    from raykd.config.experiment import load
    from raykd.config.resolve import resolve
    from raykd.launch.executor import execute
    from raykd.launch.sweep.driver import sweep
    from raykd.storage.store import Store
    from raykd.tracking.console import Terminal

    run, backbone, swept, url, folder = sys.argv[1:]
    os.environ["RAYKD_LOCAL"] = f"{folder}/local"
    ray.init(
        "local",
        num_cpus=4,
        object_store_memory=200_000_000,
        include_dashboard=True,
        log_to_driver=False,
        _metrics_export_port=int(os.environ["METRICS_PORT"]),
        _temp_dir=f"{folder}/ray",
    )
    from pathlib import Path

    terminal = Terminal(quiet=True)
    experiment = resolve(load(Path(run)), Store(url))
    execute(experiment, Store(url), terminal, students=False)
    shutil.rmtree(f"{folder}/local")  # a node that has not been there yet
    execute(experiment, Store(url), terminal)
    execute(resolve(load(Path(backbone)), Store(url)), Store(url), terminal)
    sweep(load(Path(swept)), Store(url), terminal)
    print("over", flush=True)
    sys.stdin.readline()
