"""Released weights: where they are, how their files are read, and how they become bua's.

``zoo`` finds files, ``files`` opens them (``caffemodel``, ``pickles``), ``layouts`` renames and rescales what they
hold, ``export`` goes the other way. ``bua.checkpoint`` is the front door.
"""
