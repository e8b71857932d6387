"""Cases of a law over a whole table: the default run takes some, the slow one the others."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

# One method for each kind of code that a law goes through.
METHOD_KINDS = (
    "kd",  # logits
    "crd",  # embeddings, a memory, helpers that workers share
    "at",  # stages, no helpers
    "ofd",  # pre-activations, projections
    "ft",  # a prelude
    "simkd",  # the teacher's classifier
    "mlkd",  # several looks
    "jacobian",  # gradients to the pixels
    "sakd",  # a wrapper
    "fsp_init",  # a prelude that trains the student
)
# One network for each way in which stages end: a ReLU, a norm that comes later, a plain sum, a ReLU
# of half the channels.
NETWORK_KINDS = ("resnet8", "wrn_16_1", "mobilenet_v2_x0_5", "shufflenet_v2")


def sampled(cases: Sequence[Any], step: int, first: int = 0) -> Sequence[Any]:
    """Every `step`-th of many cases of one kind, from `first` on; all where $RAYKD_FULL is set."""
    return cases if os.environ.get("RAYKD_FULL") else cases[first % step :: step]


def slow_but(cases: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Parameters of a test: all cases, those that are not among the `quick` ones marked as slow.

    A case that is a tuple has several parameters.
    """
    quick = [*quick]
    params = [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in quick else pytest.mark.slow,
        )
        for case in cases
    ]
    assert any(not param.marks for param in params), f"none of {quick} is among the cases"
    return params
