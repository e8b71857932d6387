"""Keyed transforms: crops, flips, colours, mixing, each a pure function of (seed, sample, view)."""
