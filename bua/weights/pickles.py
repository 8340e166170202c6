"""Reads pickles that contain only numbers, in arrays and containers."""

import pickle
from pathlib import Path

import numpy as np

from bua.io.safe_pickle import NotAllowedError, SafeUnpickler


def read_pickle(path: str | Path) -> object:
    """Returns the content of a pickle of numbers, strings, containers and numeric numpy arrays, with tuples as lists.

    The pickle may come from any version of numpy and Python.

    Raises:
        pickle.UnpicklingError: The pickle contains something else, such as a function to be called.
        Exception: Of any kind, if the file is truncated or not a pickle.
    """
    with open(path, "rb") as file:
        try:
            content = SafeUnpickler(file).load()
        except NotAllowedError as error:
            raise pickle.UnpicklingError(f"{error}: is neither an array nor a container") from error
    return _only_numbers(content)


def _only_numbers(content: object) -> object:
    if isinstance(content, np.ndarray) and content.dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of {content.dtype}, which are not numbers")
    if isinstance(content, dict):
        return {name: _only_numbers(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_only_numbers(value) for value in content]
    return content
