"""Files that a run writes while it trains."""

import pytest
import torch

from raykd.core.errors import CacheCorrupt
from raykd.training.checkpointing import CHECKPOINT, Checkpoints


def state():
    return {"epoch": 1, "history": [{"epoch": 0, "loss": 1.0}], "learner": {"w": torch.ones(2)}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore() is None
    checkpoints.record(state, last=False)
    restored = checkpoints.restore()
    assert restored["history"] == state()["history"]
    assert torch.equal(restored["learner"]["w"], torch.ones(2))


def test_checkpoints_are_as_far_apart_as_asked_but_the_last_is_always_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=1000)
    checkpoints.record(state, last=False)
    assert checkpoints.restore() is None
    checkpoints.record(state, last=True)
    assert checkpoints.restore() is not None
    checkpoints.close()
    assert checkpoints.restore() is None


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.record(state, last=True)
    path = tmp_path / CHECKPOINT
    data = path.read_bytes()
    for damaged in (b"", b"rubbish", data[:-100], data[100:]):
        path.write_bytes(damaged)
        with pytest.raises(CacheCorrupt, match=r"checkpoint\.pt.*remove it to start this run aga"):
            checkpoints.restore()


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep({"epoch": 1, "learner": Trap()})
    with pytest.raises(CacheCorrupt, match="cannot be read"):
        checkpoints.restore()
    assert not (tmp_path / "sprung").exists()


def test_without_a_state_the_checkpoint_stays_and_is_due_until_it_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=0)
    checkpoints.record(lambda: {"epoch": 1}, last=False)
    checkpoints.record(None, last=False)
    state = checkpoints.restore()
    assert state is not None and state["epoch"] == 1
    assert checkpoints.due(last=False)
    seldom = Checkpoints(tmp_path, seconds=1000)
    assert not seldom.due(last=False) and seldom.due(last=True)
