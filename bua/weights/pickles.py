"""Pickles that hold numpy arrays and containers alone, read without running anything that they say."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np


def read_pickle(path: str | Path):
    """What a pickle of numbers, strings, containers and numeric numpy arrays holds, whichever numpy and Python
    wrote it.

    Raises:
        pickle.UnpicklingError: it names something else, such as a function to be called.
        Exception: of any kind, where the file is truncated or no pickle.
    """
    with open(path, "rb") as file:
        # Python 2 wrote the bytes of arrays as strings, which latin1 maps to the same bytes.
        content = _ArrayUnpickler(file, encoding="latin1").load()
    return _unwrap(content)


class _DType:
    """Stands for numpy's dtype while a pickle is read: numbers and truth values alone."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {code}, not of numbers")

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands for an array while a pickle is read.

    numpy's own reconstruction makes an array of any size and type that the file says before it sees the data.
    """

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if column_major else "C")


def _reconstruct(*_) -> _Array:
    return _Array()


def _from_buffer(buffer: bytes, dtype: _DType, shape: tuple, order: str, axes: tuple | None = None) -> _Array:
    array = _Array()
    values = np.frombuffer(buffer, dtype.dtype)
    # Order "K": the shape is that of the memory, and the axes come in another order.
    array.value = values.reshape(shape, order=order) if axes is None else values.reshape(shape).transpose(axes)
    return array


def _scalar(dtype: _DType, data: bytes | str) -> int | float | bool:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype)[0].item()


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    # How the protocols of Python 2 write bytes, and none.
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor a container")
        return _ADMITTED[module, name]


def _unwrap(content):
    if isinstance(content, _Array):
        return content.value
    if isinstance(content, dict):
        return {name: _unwrap(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_unwrap(value) for value in content]
    return content
