"""Images: read from any source, augmented by the sample's key, batched.

`recipe.py` has what a recipe says of images, and `dataset.py` reads and opens them. `sources/` are
the layouts in which images come, `transforms/` pure functions of a sample's key, `packing.py`
writes shards, `loading/` makes batches. Imports `core` and `storage`.
"""
