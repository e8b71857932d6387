"""Training: from a recipe to a finished artefact in the store, in one process or as one of many.

Imports `config` and what is below it; knows neither Ray nor the command line. Begin with `loop.py`
(epoch by epoch), then `learner.py` (one step). `runs.py` is what others call.
"""
