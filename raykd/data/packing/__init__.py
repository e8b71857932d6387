"""Packs: the images of any source in Arrow shards, made by any number of processes."""
