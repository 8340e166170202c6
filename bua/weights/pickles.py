"""Pickles that hold numbers in arrays and containers alone."""

import pickle
from pathlib import Path

import numpy as np

from bua.io.safe_pickle import Refused, SafeUnpickler


def read_pickle(path: str | Path):
    """What a pickle of numbers, strings, containers and numeric numpy arrays holds, whichever numpy and Python
    wrote it; tuples as lists.

    Raises:
        pickle.UnpicklingError: it names something else, such as a function to be called.
        Exception: of any kind, where the file is truncated or no pickle.
    """
    with open(path, "rb") as file:
        try:
            content = SafeUnpickler(file).load()
        except Refused as error:
            raise pickle.UnpicklingError(f"{error}: neither an array nor a container") from error
    return _of_numbers(content)


def _of_numbers(content):
    if isinstance(content, np.ndarray) and content.dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of {content.dtype}, not of numbers")
    if isinstance(content, dict):
        return {name: _of_numbers(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_of_numbers(value) for value in content]
    return content
