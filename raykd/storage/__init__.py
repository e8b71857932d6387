"""Files: the store, atomic writes, locks, file systems by URL, and tensors as Arrow columns.

Imports `core` alone. Begin with `store.py`: folders that are named by the hash of their recipe.
"""
