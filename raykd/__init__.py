"""raykd: knowledge distillation on Ray, from a cache of the teacher's outputs.

    import raykd

    student = raykd.Student(
        "resnet20",
        teacher=raykd.Teacher("resnet56"),
        data=raykd.Data("cifar10", augment={"pad": 4, "flip": True}),
        method="kd",
    )
    results = raykd.run(student, store="raykd-store")
    print(results.table)

Names are imported when they are first used: `import raykd` imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

from raykd.core.version import __version__

if TYPE_CHECKING:
    from raykd import register
    from raykd.api.caches import Cache
    from raykd.api.experiment import Data, Experiment, Student, Teacher, load
    from raykd.api.group import train_here
    from raykd.api.networks import export_network, predictor
    from raykd.api.packs import pack
    from raykd.api.results import Results, StudentResult
    from raykd.api.work import cache, plan, results, run, show, sweep
    from raykd.core.errors import (
        CacheCorrupt,
        CacheMismatch,
        ConfigError,
        DataError,
        ExportFailed,
        NoRoom,
        RaykdError,
        Unreachable,
        WorkFailed,
    )

_HOME = {  # public name -> its module
    "Cache": "raykd.api.caches",
    "Data": "raykd.api.experiment",
    "Experiment": "raykd.api.experiment",
    "Student": "raykd.api.experiment",
    "Teacher": "raykd.api.experiment",
    "load": "raykd.api.experiment",
    "Results": "raykd.api.results",
    "StudentResult": "raykd.api.results",
    "register": "raykd.register",
    "cache": "raykd.api.work",
    "export_network": "raykd.api.networks",
    "pack": "raykd.api.packs",
    "plan": "raykd.api.work",
    "predictor": "raykd.api.networks",
    "results": "raykd.api.work",
    "run": "raykd.api.work",
    "show": "raykd.api.work",
    "sweep": "raykd.api.work",
    "train_here": "raykd.api.group",
    "CacheCorrupt": "raykd.core.errors",
    "CacheMismatch": "raykd.core.errors",
    "ConfigError": "raykd.core.errors",
    "DataError": "raykd.core.errors",
    "ExportFailed": "raykd.core.errors",
    "NoRoom": "raykd.core.errors",
    "RaykdError": "raykd.core.errors",
    "Unreachable": "raykd.core.errors",
    "WorkFailed": "raykd.core.errors",
}

__all__ = [
    "Cache",
    "CacheCorrupt",
    "CacheMismatch",
    "ConfigError",
    "Data",
    "DataError",
    "Experiment",
    "ExportFailed",
    "NoRoom",
    "RaykdError",
    "Results",
    "Student",
    "StudentResult",
    "Teacher",
    "Unreachable",
    "WorkFailed",
    "__version__",
    "cache",
    "export_network",
    "load",
    "pack",
    "plan",
    "predictor",
    "register",
    "results",
    "run",
    "show",
    "sweep",
    "train_here",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'raykd' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if name == "register" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
