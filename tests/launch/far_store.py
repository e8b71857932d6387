"""Work in a store by URL, whose driver and workers have copies of their own; a process of its own.

Called as: far_store.py FILE URL FOLDER
"""

import os
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

    file, url, folder = sys.argv[1:]
    os.environ["RAYKD_LOCAL"] = f"{folder}/driver"
    ray.init(
        "local",
        num_cpus=2,
        log_to_driver=False,
        runtime_env={"env_vars": {"RAYKD_LOCAL": f"{folder}/workers"}},
    )
    from pathlib import Path

    terminal, store = Terminal(), Store(url)
    outcome = execute(resolve(load(Path(file)), store), store, terminal)
    print("made", *outcome.made.values())
    for _ in range(2):  # the second time from Tune's own notes
        swept = sweep(load(Path(file), ["run.seed=1", "scale.rules=[]"]), store, terminal)
        print("trials", swept.count("finished"), len(swept.sheets))
