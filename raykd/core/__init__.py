"""Values and errors that every other room shares; imports nothing of raykd but itself.

Begin with `types.py` (what a network says about a batch) and `record.py` (frozen values and their
fingerprints). `keyed_random.py` has the random numbers, `errors.py` the errors of users.
"""
