"""Finished networks of a store, by fingerprint or by experiment."""

import re

from raykd.config.experiment import Experiment
from raykd.core.errors import ConfigError
from raykd.core.record import DIGITS, fingerprint
from raykd.recipes import AnyTeacher, StudentRun, TeacherRun
from raykd.storage.store import Store, read_recipe
from raykd.training.route_results import route_found

_KINDS = {kind.kind: kind for kind in (StudentRun, TeacherRun)}


def is_fingerprint(name: str) -> bool:
    """True for a word that can be the beginning of a fingerprint."""
    return re.fullmatch(f"[0-9a-f]{{1,{DIGITS}}}", name) is not None


def by_fingerprint(store: Store, name: str) -> AnyTeacher:
    """The finished student or teacher whose fingerprint begins with `name`.

    Raises `ConfigError` where there is none, or more than one.
    """
    folders = [folder for kind in _KINDS for folder in store.finished(kind)]
    finished = [folder for folder in folders if folder.name.startswith(name)]
    if len(finished) > 1:
        names = ", ".join(sorted(folder.name for folder in finished))
        raise ConfigError(
            f"{name}: {len(finished)} fingerprints begin so: {names}; give more digits"
        )
    begun = [folder for kind in _KINDS for folder in (store.root / kind).glob(f"{name}*")]
    if not finished and begun:
        raise ConfigError(
            f"{begun[0]}: its training is not finished; the `raykd run` that began it goes on"
        )
    if not finished:
        raise ConfigError(
            f"{name}: no finished student or teacher in {store.shown} has a fingerprint that "
            "begins so; `raykd show students` and `raykd show teachers` list them"
        )
    return read_recipe(_KINDS[finished[0].parent.name], finished[0])


def by_experiment(store: Store, experiment: Experiment) -> tuple[list[StudentRun], int]:
    """The finished students of an experiment, each once, and how many others it has.

    Raises `ConfigError` where none is finished, or where a sweep draws them.
    """
    if experiment.space is not None and experiment.space.search:
        raise ConfigError(
            f"{experiment.name}: a sweep draws these students; export one by its fingerprint, "
            "which `raykd report` and `raykd show students` tell"
        )
    students = [route_found(store, run) for run in experiment.runs]
    runs = dict.fromkeys(run for run in students if run is not None)
    finished = [run for run in runs if store.has(run)]
    if not finished:
        raise ConfigError(
            f"{experiment.name}: none of its {len(students)} students is finished; `raykd run` "
            "trains them"
        )
    return finished, len(runs) - len(finished) + students.count(None)


def folder_name(run: AnyTeacher) -> str:
    """Name of one of many exported folders: network, method, digits of the fingerprint."""
    method = run.method.name if isinstance(run, StudentRun) else "teacher"
    return f"{run.model.replace('/', '-')}-{method}-{fingerprint(run)[:8]}"
