"""Reads pickles without executing code from them, and writes pickles that every version of numpy can read.

Other programs keep features and weights in pickles. A pickle is a program that may call any function. The reader here
only lets it create numbers, strings, bytes, containers, and numpy arrays of these. What it creates is not much larger
than the file.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

# The prefixes of numpy's internal modules in pickles of numpy 2 and of numpy 1.
_NUMPY_2_CORE, _NUMPY_1_CORE = b"numpy._core.", b"numpy.core."

# A pickle may name the same data any number of times, for example in a list of lists of lists. The size of what it
# creates, in bytes and items and with each repetition, may be this many times the bytes of the pickle, plus _SLACK.
_LARGEST_RATIO, _SLACK = 20, 1 << 20
# The largest number of items of a tuple that is a key of a dictionary. Its hash is computed at each use.
_LONGEST_KEY = 100
_SMALL = (int, float, bool, type(None))
_REPEATED = "the same data many times"


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
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"not a readable pickle ({type(error).__name__}: {reason})") from error


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

    def __init__(self, code: object, *_):
        if not isinstance(code, str):
            raise NotAllowedError(f"a dtype of a {type(code).__name__}")
        self.value = np.dtype(code)
        if self.value.kind not in "biufSUO":
            raise NotAllowedError(f"an array of {code[:200]}")

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

    def plain(self, seen: dict, allowed: int) -> np.ndarray:
        content = self.content
        if isinstance(content, list):
            content = np.empty(len(content), object)
            for position, value in enumerate(self.content):
                content[position], _ = _plain(value, seen, allowed)
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
    if encoding not in ("latin1", "latin-1"):
        raise NotAllowedError("text in another encoding than latin1")
    return text.encode("latin1")


def _ordered_dict(items: Any = ()) -> OrderedDict:
    return OrderedDict(
        (_checked_key(key), value) for key, value in (items.items() if isinstance(items, dict) else items)
    )


def _no_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered_dict,
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


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle. Subclasses may allow more in ``find_class``.

    This is pickle's reader in Python. The one in C keeps a table of as many objects as a pickle names, even if that is
    4 billion, and computes the hash of tuples that are nested so deeply that the process crashes.

    Args:
        file: The file, positioned at the start of the pickle. It must be seekable.
    """

    # What pickle's reader sets when it loads.
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: BinaryIO):
        # Python 2 wrote the bytes of arrays as strings. Decoded as latin1, they can be converted back.
        super().__init__(file, encoding="latin1")
        self._source, self._start = file, file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(self._start)
        self._created = 0

    def load(self) -> object:
        """Returns the content, with numpy's scalars as Python's.

        Raises:
            NotAllowedError: The pickle contains something that is not allowed.
            Exception: Of any kind, if the pickle is truncated or the file is not a pickle.
        """
        content = super().load()
        return _plain(content, {}, self._allowed())[0]

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _ALLOWED:
            raise NotAllowedError(f"{module}.{name}"[:200])
        substitute = _ALLOWED[module, name]

        # A new function is created each time, because a pickle may set attributes of the function that it gets.
        def call(*arguments: object) -> object:
            created = substitute(*arguments)
            self._count(created)
            return created

        return call

    def _count(self, created: object) -> None:
        """Counts what a call has created, which may have copied data."""
        self._created += _size(created)
        if self._created > self._allowed():
            raise NotAllowedError(_REPEATED)

    def _allowed(self) -> int:
        return _LARGEST_RATIO * (self._source.tell() - self._start) + _SLACK

    # The functions for single opcodes, which pickle calls by the table ``dispatch``.

    def _load_build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, (_Array, _DType)):
            instance.__setstate__(state)
            self._count(getattr(instance, "content", None))
        elif not isinstance(instance, OrderedDict):  # torch's have attributes, which are not needed
            raise NotAllowedError(f"the state of a {type(instance).__name__}")

    def _load_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("pickle data was truncated")
        self.append(bytearray(self.read(size)))

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_checked_key(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2]):
            target[_checked_key(key)] = value

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_checked_key(key): value for key, value in zip(items[::2], items[1::2])})

    def _load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise pickle.UnpicklingError("elements of a set without the set")
        self.stack[-1].update(map(_checked_key, items))

    def _load_frozenset(self) -> None:
        self.append(frozenset(map(_checked_key, self.pop_mark())))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
    }


def _checked_key(key: Any) -> Any:
    """Returns a key of a dictionary or an element of a set.

    The hash of a tuple is computed from its items each time. Nested tuples may need more steps than there are in a
    lifetime, since they may contain the same tuple several times, or exceed the stack of the process.
    """
    if isinstance(key, (tuple, frozenset)) and (
        len(key) > _LONGEST_KEY or any(isinstance(item, (tuple, frozenset)) for item in key)
    ):
        raise NotAllowedError("a nested or long tuple as a key")
    return key


def _plain(content: Any, seen: dict[int, tuple[Any, int] | None], allowed: int) -> tuple[Any, int]:
    """Returns the content with arrays and dtypes in place of ``_Array`` and ``_DType``, and its size with repetitions.

    Args:
        seen: The results by the id() of the original, since a pickle may contain an object several times; None for
            those that are not finished, which contain the object at hand.
        allowed: The largest size.

    Raises:
        NotAllowedError: The content is larger, or it contains itself.
    """
    if isinstance(content, (str, bytes)):
        return content, len(content)
    if type(content) in _SMALL:
        return content, 1
    if id(content) in seen:
        found = seen[id(content)]
        if found is None:
            raise NotAllowedError("an object that contains itself")
        return found
    seen[id(content)] = None
    plain, size = content, _size(content)
    if isinstance(content, _DType):
        plain = content.value
    elif isinstance(content, _Array):
        plain = content.plain(seen, allowed)
        size += _size(plain)
    elif isinstance(content, dict):
        for key, value in content.items():
            if type(value) not in _SMALL:
                content[key], more = _plain(value, seen, allowed)
                size += more
            if type(key) not in _SMALL:
                size += _plain(key, seen, allowed)[1]
    elif isinstance(content, (list, tuple, set, frozenset)):
        values = [_plain(value, seen, allowed) for value in content]
        size += sum(more for _, more in values)
        if isinstance(content, list):
            content[:] = [value for value, _ in values]
        elif isinstance(content, tuple):
            plain = tuple(value for value, _ in values)
    if size > allowed:
        raise NotAllowedError(_REPEATED)
    seen[id(content)] = plain, size
    return plain, size


def _size(content: object) -> int:
    """Returns the number of bytes of an array, bytes or text, or the number of items of a container."""
    if isinstance(content, np.ndarray):
        return content.size if content.dtype.hasobject else content.nbytes
    return len(content) if isinstance(content, (bytes, bytearray, str, dict, list, tuple, set, frozenset)) else 1
