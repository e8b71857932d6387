"""A sweep whose workers write down every shard and every training; a process of its own.

Called as: counted_sweep.py FILE STORE LOG
"""

import os
import sys
from pathlib import Path


def note(line: str) -> None:
    with Path(os.environ["COUNTED"]).open("a") as file:
        file.write(line + "\n")


def install() -> None:
    """Let the functions that make things say so; called in every worker."""
    from raykd.core.record import fingerprint
    from raykd.training import runs as fit

    shard, distil = fit.compute_shard, fit.distil

    def counted_shard(folder, part, *others):
        note(f"shard {folder.name} {part.view} {part.start} {part.stop}")
        return shard(folder, part, *others)

    def counted_distil(run, *args, **options):
        note(f"training {fingerprint(run)}")
        return distil(run, *args, **options)

    fit.compute_shard, fit.distil = counted_shard, counted_distil


if __name__ == "__main__":
    # Of a plain cluster, which would otherwise leave a token in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    from raykd.config.experiment import load
    from raykd.launch.sweep.driver import sweep
    from raykd.storage.store import Store
    from raykd.tracking.console import Terminal

    file, root, log = map(Path, sys.argv[1:])
    ray.init(
        "local",
        num_cpus=2,
        log_to_driver=False,
        runtime_env={"env_vars": {"COUNTED": str(log)}, "worker_process_setup_hook": install},
    )
    swept = sweep(load(file), Store(root), Terminal())
    print(swept.count("finished"), swept.count("failed"))
