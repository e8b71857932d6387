"""Images: read from any source, cut and mixed by the sample's key, batched.

Imports `core` and `storage`. `sources/` is where images come from, `transforms/` are pure functions
of a sample's key, `packing/` makes shards, `loading/` makes batches. Begin with `dataset.py`.
"""
