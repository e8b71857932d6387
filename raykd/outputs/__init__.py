"""The cache of a teacher's outputs: its codecs, manifest, shards, and the look-up of rows.

Imports `core`, `storage`, `models`, `methods` and `data`. Begin with `manifest.py`
(what a cache's folder holds), then `reader.py` (from sample ids to outputs).
"""
