"""Teachers as a run sees them: live or cached, and which checkpoint teaches which epoch.

Imports `core`, `storage`, `models`, `methods`, `data` and `outputs`. Begin with `source.py`.
"""
