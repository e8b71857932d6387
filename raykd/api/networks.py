"""Finished networks of a store and of exported folders: prediction and export."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from raykd.api.experiment import Experiment, Student, experiment_of
from raykd.api.work import StoreLike, prepared, store_of
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.export import ExportResult
from raykd.export import export as export_to
from raykd.prediction import Predictor, is_exported, load, load_exported
from raykd.prediction.lookup import by_experiment, by_fingerprint, folder_name, is_fingerprint
from raykd.recipes import AnyTeacher, StudentRun
from raykd.storage.store import Store

Format = Literal["safetensors", "torch", "onnx"]
# A fingerprint or its beginning, or an experiment with one finished student.
NetworkLike: TypeAlias = str | PathLike[str] | Experiment | Student | StudentRun


class Finished(NamedTuple):
    """The finished networks that a name stands for."""

    store: Store
    runs: list[AnyTeacher]
    unfinished: int | None  # other students of the experiment; None of a fingerprint


def predictor(network: NetworkLike, store: StoreLike = None) -> Predictor:
    """A finished student or teacher in eval mode on the CPU, an `nn.Module` with `predict(paths)`.

        raykd.predictor("3fa2c01b").predict(["new/1.jpg"])  # in the store
        raykd.predictor("student")                          # a folder that `raykd export` wrote

    network: a fingerprint or its beginning, an exported folder, or an experiment (or its file) of
    which exactly one student is finished. Nothing of a folder is executed. Raises `ConfigError`
    where there is none, `CacheCorrupt` where weights were altered.
    """
    if isinstance(network, str | PathLike) and is_exported(Path(network)):
        return load_exported(Path(network))
    named = finished_networks(network, store)
    return load(named.store, only(network, named))


def export_network(
    network: NetworkLike,
    folder: str | PathLike[str],
    store: StoreLike = None,
    *,
    formats: Sequence[Format] = (),
    int8: bool = False,
) -> ExportResult:
    """Write a finished network to a folder as files that need no raykd.

    network: as in `predictor`. formats: default: all. int8: also an ONNX graph of 8 bits. Raises
    `ConfigError` where it is not finished or the folder holds other files, `ExportFailed` where a
    file answers otherwise than the network.
    """
    named = finished_networks(network, store)
    return export_to(named.store, only(network, named), Path(folder), formats, int8=int8)


def finished_networks(
    network: NetworkLike, store: StoreLike = None, overrides: Sequence[str] = ()
) -> Finished:
    """The finished networks of a name, of which an experiment has any number.

    Raises `ConfigError` where there is none.
    """
    experiment = network
    if isinstance(network, str | PathLike):
        path, name = Path(network), str(network)
        if is_fingerprint(name) and not path.is_file():
            if overrides:
                raise ConfigError(
                    f"{overrides[0]}: only an experiment has overrides, not a fingerprint"
                )
            storage = store_of(store)
            return Finished(storage, [by_fingerprint(storage, name)], None)
        if not path.is_file() and path.suffix not in (".yaml", ".yml"):
            raise ConfigError(
                f"{name}: neither an experiment file nor a fingerprint, which has digits from 0 to "
                "9 and a to f (`raykd show students` lists them), nor an exported folder"
            )
        from raykd.api.experiment import load as load_experiment

        experiment = load_experiment(path, *overrides)
    resolved, storage, _ = prepared(experiment_of(experiment), store)
    runs, unfinished = by_experiment(storage, resolved)
    return Finished(storage, [*runs], unfinished)


def only(network: NetworkLike, named: Finished) -> AnyTeacher:
    """The one finished network. Raises `ConfigError` where an experiment has several."""
    if len(named.runs) == 1:
        return named.runs[0]
    names = [f"{fingerprint(run)[:8]} ({folder_name(run)})" for run in named.runs]
    more = ", ..." if len(names) > 5 else ""
    raise ConfigError(
        f"{network}: {len(names)} of its students are finished; name one by its fingerprint: "
        f"{', '.join(names[:5])}{more}"
    )
