"""The table of speeds of experiments/benchmarks/gpu.py."""

from experiments.benchmarks.gpu import Speed


def _share(peaks: list[float]) -> str:
    """The last column of a speed of 10 images/s, each of 8 FLOP."""
    line = Speed("here", "a step", [10.0, 10.0, 10.0], flops=8.0, peaks=peaks).line()
    return line.split("|")[-2].strip()


def test_a_share_is_of_the_best_product_of_its_round():
    assert _share([160.0, 100.0, 320.0]) == "50 %"


def test_a_step_that_outdoes_every_product_has_no_share():
    assert _share([40.0, 70.0, 90.0]) == ""


def test_a_speed_without_products_has_no_share():
    line = Speed("here", "loading", [10.0]).line()
    assert line.endswith("|  |  |")
