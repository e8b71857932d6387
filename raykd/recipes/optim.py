"""Optim: the optimiser and the schedule of a training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record

Epoch = Annotated[int, Field(ge=0, le=Limits.EPOCHS)]
Precision = Literal["float32", "bfloat16"]


class Optim(Record):
    """The optimiser and its schedule. The defaults are the CRD benchmark's for CIFAR.

    Epochs are counted from 0: a milestone of 150 is the first epoch with the lower rate. The last,
    partial batch of an epoch is dropped (the benchmark keeps it); other samples in every epoch.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    epochs: int = Field(default=240, ge=1, le=Limits.EPOCHS)
    batch: int = Field(default=64, ge=1, le=Limits.ROWS)  # global: over all workers
    lr: float = Field(default=0.05, gt=0, le=Limits.RATE)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # for sgd
    nesterov: bool = False  # for sgd
    weight_decay: float = Field(default=5e-4, ge=0, le=1000)  # on every parameter
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[Epoch, ...] | None = None  # epochs; None: 5/8, 3/4 and 7/8 of them
    gamma: float = Field(default=0.1, gt=0, le=1000)  # the rate's factor at each milestone
    warmup_epochs: int = Field(default=0, ge=0, le=Limits.EPOCHS)  # linear, step by step
    # Largest L2 norm of the gradients; those of a policy are clipped apart.
    clip: float | None = Field(default=None, gt=0, le=Limits.RATE)
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay per step of the averaged weights

    @model_validator(mode="after")
    def _check(self) -> "Optim":
        late = [epoch for epoch in self.milestones or () if epoch >= self.epochs]
        if late:
            raise ValueError(
                f"milestone {late[0]} lies beyond the {self.epochs} epochs; "
                "leave milestones out to scale them with the epochs"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{self.warmup_epochs} epochs of warm-up leave none of the {self.epochs} epochs"
            )
        return self
