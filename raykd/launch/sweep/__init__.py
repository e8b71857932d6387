"""Sweeps on Ray Tune. Begin with `driver.py`, then `trial.py`."""
