"""Reads pickles without executing code from them, and writes pickles that every version of numpy can read.

Other programs keep features and weights in pickles. A pickle is a program that may call any function. The reader here
only lets it create numbers, strings, bytes, containers, and numpy arrays of these.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, Literal

import numpy as np

# The prefixes of numpy's internal modules in pickles of numpy 2 and of numpy 1.
_NUMPY_2_CORE, _NUMPY_1_CORE = b"numpy._core.", b"numpy.core."


def loads(data: bytes) -> object:
    """Returns the content of a pickle of any protocol, from any version of numpy and Python.

    Numpy's scalars are returned as Python's.

    Raises:
        ValueError: The pickle contains something that is not allowed (the message names it), or is damaged.
    """
    try:
        return SafeUnpickler(io.BytesIO(data)).load()
    except NotAllowedError as error:
        raise ValueError(f"the pickle contains {error}, which is not allowed") from error
    except Exception as error:  # A damaged pickle can raise almost any exception.
        raise ValueError(f"not a readable pickle ({type(error).__name__}: {error})") from error


def dumps(content: object) -> bytes:
    """Returns a pickle (protocol 3) of plain Python types and numpy arrays that numpy 1 and numpy 2 both can read."""
    data = pickle.dumps(content, protocol=3)
    # numpy 2 can read the module names that numpy 1 writes, but numpy 1 cannot read those of numpy 2.
    parts, start = [], 0
    for opcode, _, position in pickletools.genops(data):
        assert position is not None, "genops knows the positions in bytes"
        if opcode.name == "GLOBAL" and data.startswith(_NUMPY_2_CORE, position + 1):
            parts += [data[start : position + 1], _NUMPY_1_CORE]
            start = position + 1 + len(_NUMPY_2_CORE)
    return b"".join([*parts, data[start:]])


class NotAllowedError(pickle.UnpicklingError):
    """Raised when a pickle would call or create something that is not allowed. The message names it."""


class _DType:
    """Takes the place of numpy's dtype while a pickle is read."""

    def __init__(self, code: str, *_):
        self.value = np.dtype(str(code))
        if self.value.kind not in "biufSUO":
            raise NotAllowedError(f"an array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Takes the place of an array while a pickle is read.

    numpy's own code would allocate an array of whatever size and type the pickle names before it has seen the data.
    """

    order: Literal["C", "F"]

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, dtype, column_major, data = state
        self.order = "F" if column_major else "C"
        # An array of objects stays a list for now, since its elements may contain further placeholders.
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


def _array_of_buffer(
    data: bytes, dtype: _DType, shape: tuple, order: Literal["C", "F"], axes: tuple | None = None
) -> np.ndarray:
    array = np.frombuffer(data, dtype.value)
    # With axes (order "K"), the shape is that of the memory, and the axes are a permutation of it.
    return array.reshape(shape, order=order).copy() if axes is None else array.reshape(shape).transpose(axes).copy()


def _scalar(dtype: _DType, data: bytes | str) -> int | float | bool | str | bytes:
    return np.frombuffer(_bytes(data), dtype.value)[0].item()


def _bytes(data: bytes | bytearray | str) -> bytes | bytearray:
    return data.encode("latin1") if isinstance(data, str) else data


def _encode(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


def _no_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    # The protocols of Python 2 write bytes by calling `encode`, and empty bytes by calling `bytes`.
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _core in ("core", "_core"):
    _ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _new_array
    _ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _array_of_buffer


class SafeUnpickler(pickle.Unpickler):
    """Reads one pickle. Subclasses may allow more in ``find_class``.

    Args:
        file: The file, positioned at the start of the pickle.
    """

    def __init__(self, file: BinaryIO):
        # Python 2 wrote the bytes of arrays as strings. Decoded as latin1, they can be converted back.
        super().__init__(file, encoding="latin1")

    def load(self) -> object:
        """Returns the content, with numpy's scalars as Python's.

        Raises:
            NotAllowedError: The pickle contains something that is not allowed.
            Exception: Of any kind, if the pickle is truncated or the file is not a pickle.
        """
        return _plain(super().load(), {})

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _ALLOWED:
            raise NotAllowedError(f"{module}.{name}")
        substitute = _ALLOWED[module, name]
        # A new function is created each time, because a pickle may set attributes of the function that it gets.
        return lambda *arguments: substitute(*arguments)


def _plain(content, seen: dict):
    """Returns the content with arrays and dtypes in place of ``_Array`` and ``_DType``.

    Args:
        seen: The converted objects by the id() of the original, since a pickle may contain an object several times, or
            inside itself.
    """
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
