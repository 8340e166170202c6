"""Released weights: where they are, how their files are read, and how they are converted to bua's layout.

``zoo`` finds files; ``files`` reads them, with ``caffemodel`` and ``pickles``; ``layouts`` renames and rescales the
tensors; ``export`` converts in the other direction. Most code only needs ``bua.checkpoint``, which uses all of these.
"""
