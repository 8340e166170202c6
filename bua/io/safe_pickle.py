"""Pickles as other programs keep features and weights in: read without running anything that they say, written so that
every numpy reads them.

A pickle is a program. Here it may build numbers, strings, bytes, containers and numpy arrays of those, and call
nothing else.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from typing import BinaryIO

import numpy as np

_CORES = (b"numpy._core.", b"numpy.core.")


def loads(data: bytes) -> object:
    """What a pickle of any protocol holds, whichever numpy and Python wrote it. Numpy's scalars become Python's.

    Raises:
        ValueError: names what it would have called or made, or says why it cannot be read.
    """
    try:
        return SafeUnpickler(io.BytesIO(data)).load()
    except Refused as error:
        raise ValueError(f"a pickle with {error}, which is not read") from error
    except Exception as error:  # A damaged pickle raises nearly anything.
        raise ValueError(f"not a pickle that can be read ({type(error).__name__}: {error})") from error


def dumps(content: object) -> bytes:
    """A pickle (protocol 3) of plain Python types and numpy arrays that numpy 1 and numpy 2 both read."""
    data = pickle.dumps(content, protocol=3)
    new, old = _CORES
    # numpy 2 reads the names that numpy 1 writes, and not the other way round.
    parts, start = [], 0
    for opcode, _, position in pickletools.genops(data):
        if opcode.name == "GLOBAL" and data.startswith(new, position + 1):
            parts += [data[start : position + 1], old]
            start = position + 1 + len(new)
    return b"".join([*parts, data[start:]])


class Refused(pickle.UnpicklingError):
    """Names what a pickle would have called or made."""


class _DType:
    """Stands for numpy's dtype while a pickle is read."""

    def __init__(self, code: str, *_):
        self.value = np.dtype(str(code))
        if self.value.kind not in "biufSUO":
            raise Refused(f"an array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for an array while a pickle is read.

    numpy's own reconstruction makes an array of any size and type that the pickle says before it sees the data.
    """

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, dtype, column_major, data = state
        self.order = "F" if column_major else "C"
        # The objects of an array of objects may be stand-ins still: they stay a list for now.
        self.content = data if dtype.value.kind == "O" else np.frombuffer(_bytes(data), dtype.value)

    def plain(self, seen: dict) -> np.ndarray:
        content = self.content
        if isinstance(content, list):
            content = np.empty(len(content), object)
            for position, value in enumerate(self.content):
                content[position] = _plain(value, seen)
        return content.reshape(self.shape, order=self.order).copy()


def _new_array(*_) -> _Array:
    return _Array()


def _array_of_buffer(data: bytes, dtype: _DType, shape: tuple, order: str, axes: tuple | None = None) -> np.ndarray:
    array = np.frombuffer(data, dtype.value)
    # Order "K": the shape is that of the memory, and the axes come in another order.
    return array.reshape(shape, order=order).copy() if axes is None else array.reshape(shape).transpose(axes).copy()


def _scalar(dtype: _DType, data: bytes | str) -> int | float | bool | str | bytes:
    return np.frombuffer(_bytes(data), dtype.value)[0].item()


def _bytes(data: bytes | bytearray | str) -> bytes | bytearray:
    return data.encode("latin1") if isinstance(data, str) else data


def _encode(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


def _no_bytes() -> bytes:
    return b""


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
        ("multiarray", "_reconstruct", _new_array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _array_of_buffer),
    )
}


class SafeUnpickler(pickle.Unpickler):
    """Reads one pickle; subclasses may admit more in ``find_class``.

    Args:
        file: at the pickle's start.
    """

    def __init__(self, file: BinaryIO):
        # Python 2 wrote the bytes of arrays as strings, which latin1 maps to the same bytes.
        super().__init__(file, encoding="latin1")

    def load(self) -> object:
        """The content, numpy's scalars as Python's.

        Raises:
            Refused: there is something in it that is not read.
            Exception: of any kind, where it is truncated or no pickle.
        """
        return _plain(super().load(), {})

    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise Refused(f"{module}.{name}")
        stand_in = _ADMITTED[module, name]
        # A new function each time, because a pickle may set attributes of what it is given.
        return lambda *arguments: stand_in(*arguments)


def _plain(content, seen: dict):
    """The content with arrays and dtypes for their stand-ins; ``seen`` has by id() what was done, as a pickle may
    hold one thing many times, or in itself."""
    if id(content) in seen:
        return seen[id(content)]
    if isinstance(content, _DType):
        return content.value
    if isinstance(content, _Array):
        seen[id(content)] = array = content.plain(seen)
        return array
    if isinstance(content, dict):
        seen[id(content)] = content
        for key, value in content.items():
            content[key] = _plain(value, seen)
    elif isinstance(content, list):
        seen[id(content)] = content
        content[:] = [_plain(value, seen) for value in content]
    elif isinstance(content, tuple):
        plain = tuple(_plain(value, seen) for value in content)
        seen[id(content)] = plain
        return plain
    return content
