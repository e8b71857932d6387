"""Progress of a command: bars on a terminal, lines in a log.

Imports `training` and what is below it. Begin with `console.py`.
"""
