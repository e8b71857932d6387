"""The running average of a student's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykd.models.staged import Staged


class Average(AveragedModel):
    """The exponential moving average of a student's weights and buffers, from its first step on.

    Values and state equal the parent class's bit for bit. But the number of steps is not copied
    from the GPU, and the weights may be one worker's shares.
    """

    def __init__(self, student: Staged, decay: float) -> None:
        super().__init__(student, use_buffers=True)
        self._move = get_ema_multi_avg_fn(decay)
        self._begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a student's weights."""
        averages, values = _values(self.module), _values(model)
        if not (self._begun or self.n_averaged):
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
        else:
            for is_floating in (True, False):  # the counts of batches are integers
                pairs = zip(averages, values, strict=True)
                chosen = [pair for pair in pairs if pair[0].is_floating_point() is is_floating]
                if chosen:
                    self._move([a for a, _ in chosen], [v for _, v in chosen], self.n_averaged)
        self._begun = True
        self.n_averaged += 1


def _values(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers; the shares of them that are here, where they are shared out."""
    every = (*module.parameters(), *module.buffers())
    return [getattr(value, "to_local", value.detach)() for value in every]
