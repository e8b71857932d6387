"""Inputs of methods: rows of outputs and batches, and the names of signals."""

import torch

from raykd.core.types import Batch, Outputs, Signal


def test_signals_are_named_as_the_table_of_methods_names_them():
    assert str(Signal.FEATURES | Signal.LIVE) == "features, live"
    assert str(Signal(0)) == ""


def test_chosen_maps_are_the_rows_and_stay_channels_last():
    maps = torch.randn(6, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    outputs = Outputs(torch.randn(6, 10), {"stage1": maps, "stage1.pre": maps, "stage2": maps})
    keep = torch.tensor([4, 1])
    chosen = outputs.rows({"stage1": keep})
    for name in ("stage1", "stage1.pre"):
        assert torch.equal(chosen.features[name], maps[keep])
        assert chosen.features[name].is_contiguous(memory_format=torch.channels_last)
    assert chosen.features["stage2"] is maps
    assert chosen.logits is outputs.logits


def test_other_looks_and_the_batch_lose_the_same_rows():
    logits, keep = torch.randn(6, 10), torch.tensor([5, 0, 2])
    outputs = Outputs(logits).with_looks({"clean": Outputs(2 * logits)})
    assert torch.equal(outputs.rows({"logits": keep}).look("clean").logits, 2 * logits[keep])
    pixels, ids = torch.randn(6, 3, 4, 4), torch.arange(6)
    clean = Batch(pixels, ids + 10, ids, 0, 0)
    batch = Batch(pixels, ids, ids, 0, 0, {"clean": clean}, torch.rand(6)).rows(keep)
    assert torch.equal(batch.ids, keep)
    assert torch.equal(batch.looks["clean"].targets, keep + 10)
    assert batch.weights is not None
    assert len(batch.weights) == 3
    assert batch.pixels is pixels
