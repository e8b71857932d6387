"""Trainings that end within an epoch, as those of a killed process do."""

from tests.training.test_loop import Stop


class StopAt:
    """Logger that stops a training within its epoch `last`, after other loggers and before its
    checkpoint.
    """

    def __init__(self, last: int) -> None:
        self.last = last

    def begin(self, run, history):
        pass

    def epoch(self, run, metrics):
        if metrics["epoch"] == self.last:
            raise Stop

    def end(self, run, result):
        assert result is None
