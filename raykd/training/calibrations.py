"""Calibrations of methods by a teacher's outputs, kept in its cache for all students.

A student that reads a cache writes `calibration-<digest>.safetensors` beside its shards, and the
next one reads that instead of 16,384 rows. The digest is of all that determines the tensors, the
checksums of the shards among it, so that a file is never out of date; the file holds a checksum of
its name and its tensors.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raykd.core.errors import CacheCorrupt, RaykdError
from raykd.core.record import fingerprint
from raykd.core.types import Outputs
from raykd.data.loading.loader import Views
from raykd.methods.base import Method
from raykd.methods.helper_kinds import Calibrated
from raykd.methods.wrapper import Wrapper
from raykd.outputs.reader import OutputsCache
from raykd.recipes import OutputsRun
from raykd.storage import arrow, locks
from raykd.storage.store import Store, first_line
from raykd.teachers.source import Source, caches_of
from raykd.training.hosts.base import Host

BEGINNING = "calibration-"  # of a file's name
ROWS = 1 << 14  # training samples whose teacher outputs a method may calibrate with
_REVISION = 2  # goes up where `calibrate` of any method comes to set something else
_AT_ONCE = 512  # samples of a batch, at most
_SUM = "checksum"  # key of a file's metadata
_State = Mapping[str, Tensor]
_Read = Sequence[tuple[OutputsCache, str]]


@dataclass(frozen=True)
class Sample(Iterable[Outputs]):
    """A teacher's outputs for some training samples in one view.

    Each pass computes or reads them again, so that none has to be kept.
    """

    teacher: Source
    train: Views
    rows: Tensor  # int64 [n]
    view: int

    def __iter__(self) -> Iterator[Outputs]:
        """The outputs for one batch after the other; where caches have them, no image is shown."""
        cached = bool(caches_of(self.teacher, self.view))
        batches = self.train.unseen if cached else self.train.runs
        return map(self.teacher, batches(self.rows, self._size, self.view))

    def calibrate(self, method: Method, helpers: nn.ModuleDict) -> None:
        """Let a method look at the outputs."""
        with torch.no_grad():
            method.calibrate(helpers, self)

    def words(self) -> list[Any]:
        """All that determines the samples and their batches, as plain data."""
        rows = arrow.checksum(self.rows.cpu().numpy().tobytes())
        return [fingerprint(self.train.data), rows, self.view, self._size]

    @property
    def _size(self) -> int:
        """Samples of a batch."""
        return self.train.at_once(_AT_ONCE)


class Calibrations:
    """The calibrations that the caches of a store keep."""

    def __init__(self, store: Store, host: Host) -> None:
        self._store = store
        self._host = host

    def set(self, method: Method, helpers: nn.ModuleDict, sample: Sample) -> None:
        """Calibrate the parts of a method whose calibration the teacher's cache keeps.

        The first worker reads it, or computes and writes it, and hands it to the others: all of
        them call this. Other parts are left as they are; so are all where a network answers, and
        those that could not be looked for. Raises what `calibrate` raises, on every worker.
        """
        caches = caches_of(sample.teacher, sample.view)
        for part, own in _parts(method, helpers) if caches else ():
            if part.calibration_reads() is None or not part.needs_calibration(own):
                continue
            first = self._host.rank == 0
            failure = self._obtain(part, own, sample, caches) if first else None
            self._raise_everywhere(failure)
            self._hand_on(_buffers(own).values())

    def _obtain(
        self, method: Method, helpers: nn.ModuleDict, sample: Sample, caches: _Read
    ) -> RaykdError | None:
        """Set the buffers of a method to what its cache keeps, or else calibrate and keep it.

        Returns the error where `calibrate` raised one. Where storage fails, nothing is kept.
        """
        buffers, cache = _buffers(helpers), caches[0][0]
        name = BEGINNING + _key(method, buffers, sample, caches)
        path = cache.folder / f"{name}.safetensors"
        try:
            if self._loaded(path, buffers):
                return None
            with locks.held(self._store, OutputsRun.read(cache.manifest.recipe), name):
                if self._loaded(path, buffers, tell=True):  # made meanwhile by another process
                    return None
                try:
                    sample.calibrate(method, helpers)
                except RaykdError as error:  # raised once the other workers go on
                    return error
                if _fault(buffers) is None:
                    self._store.write(path, packed(name, buffers))
        except RaykdError as error:
            _warn(f"a calibration is computed and not kept: {error}")
        return None

    def _loaded(self, path: Path, buffers: _State, *, tell: bool = False) -> bool:
        """True once buffers are set to a file's tensors; warns of a damaged one where it may."""
        if not self._store.pull(path).is_file():
            return False
        try:
            _load(path, buffers)
        except CacheCorrupt as error:
            if tell:
                _warn(str(error))
            return False
        return True

    def _raise_everywhere(self, failure: RaykdError | None) -> None:
        """Raise the first worker's error, if there is one, with its text on the others."""
        text = list(str(failure or "").encode())
        told = self._host.gather(torch.tensor(text, dtype=torch.uint8, device=self._host.device))
        if len(told):
            raise failure or RaykdError(bytes(told.tolist()).decode())

    def _hand_on(self, buffers: Iterable[Tensor]) -> None:
        """Set the buffers of all workers to those of the first one."""
        if self._host.world == 1:
            return
        for buffer in buffers:
            mine = buffer if self._host.rank == 0 else torch.zeros_like(buffer)
            buffer.copy_(self._host.total(mine.int() if mine.dtype is torch.bool else mine))


def _key(method: Method, buffers: _State, sample: Sample, caches: _Read) -> str:
    """Digest of all that determines a calibration."""
    words = [
        _REVISION,
        [method.name, type(method).plugin, method.calibration_reads()],
        _forms(buffers),
        [how for _, how in caches],
        sample.words(),
    ]
    return arrow.checksum(json.dumps(words).encode())


def packed(name: str, state: _State) -> bytes:
    """The content of the file `name`.safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return safetensors.torch.save(tensors, {_SUM: _checksum(name, tensors)})


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises `CacheCorrupt` where it is missing or not as it was written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(_SUM)
        if checksum != _checksum(path.stem, tensors):
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CacheCorrupt(
            f"{path}: not a calibration as it was written ({first_line(error)}); the next student "
            "computes it again"
        ) from error
    return tensors


def _load(path: Path, buffers: _State) -> None:
    """Set buffers to a file's tensors. Raises `CacheCorrupt` where those are others."""
    tensors = read(path)
    fault = _fault(tensors)
    if _forms(tensors) != _forms(buffers):
        fault = f"it has {_forms(tensors)}, and {_forms(buffers)} are expected"
    if fault is not None:
        raise CacheCorrupt(f"{path}: {fault}; this student computes it again")
    for name, buffer in buffers.items():
        buffer.copy_(tensors[name])


def _forms(state: _State) -> dict[str, str]:
    """Type and shape of each tensor."""
    return {name: f"{value.dtype} {[*value.shape]}" for name, value in state.items()}


def _fault(state: _State) -> str | None:
    """The fault in the numbers of a calibration; None if there is none."""
    wrong = [name for name, value in state.items() if not bool(value.isfinite().all())]
    return f"{wrong[0]} is not finite" if wrong else None


def _checksum(name: str, tensors: dict[str, Tensor]) -> str:
    return arrow.checksum(name.encode() + safetensors.torch.save(tensors))


def _buffers(helpers: nn.Module) -> dict[str, Tensor]:
    """The buffers that calibration sets, by name."""
    return {
        f"{where}.{name}": buffer
        for where, module in helpers.named_modules()
        if isinstance(module, Calibrated) and not module.fixed
        for name, buffer in module.named_buffers(recurse=False)
    }


def _parts(method: Method, helpers: nn.ModuleDict) -> Iterator[tuple[Method, nn.ModuleDict]]:
    """The methods that a method is made of, or itself, with their helpers."""
    if not isinstance(method, Wrapper):
        yield method, helpers
        return
    for part, own in method.with_helpers(helpers):
        yield from _parts(part, own)


def _warn(text: str) -> None:
    logging.getLogger(__name__).warning("%s", text)
