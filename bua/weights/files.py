"""Reads files of weights from different programs. The kind of a file is recognised by its first bytes."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bua.errors import InputError
from bua.weights.caffemodel import read_caffemodel
from bua.weights.pickles import read_pickle

_ZIP = b"PK"
# The pickled number at the start of files that torch.save wrote before it wrote zip archives.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# The header of protocol 2 and later; then, for older protocols, the start of a dict and of an object such as
# OrderedDict.
_PICKLE = (b"\x80", b"(d", b"}", b"c")
# The tags of NetParameter's fields name (1), old layers (2), input (3) and layer (100).
_CAFFEMODEL = (b"\x0a", b"\x12", b"\x1a", b"\xa2\x06")
_UNREADABLE = "is not a checkpoint, or is truncated"


def read_file(path: str | Path) -> dict:
    """Returns the dictionary that a file holds, with tensors on the CPU.

    For a ``.caffemodel``, this is the dictionary that ``read_caffemodel`` returns. Loading a file never executes code
    from it.

    Raises:
        InputError: There is no such file, it cannot be read, it is empty or truncated, it holds no dictionary, or it
            holds Python objects other than numbers, strings, tensors, arrays and containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(len(_OLD_TORCH))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith((_ZIP, _OLD_TORCH)):
        content = _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    elif head.startswith(_PICKLE):
        content = _read(path, lambda: read_pickle(path))
    elif head.startswith(_CAFFEMODEL):
        content = _read(path, lambda: read_caffemodel(path))
    else:
        raise InputError(f"{path}: {_UNREADABLE}; copy or download it again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__} instead of weights; give a checkpoint")
    return content


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors in a file under their names in the file.

    Raises:
        InputError: As for ``read_file``, or the file holds no weights.
    """
    content = read_file(path)
    # Detectron2 and bua save the tensors under the key "model", Detectron under "blobs", others without a key.
    weights = content.get("model", content.get("blobs", content))
    if isinstance(weights, dict):
        weights = {name: _tensor(value) for name, value in weights.items()}
        if weights and all(isinstance(n, str) and isinstance(value, Tensor) for n, value in weights.items()):
            return weights
    raise InputError(f"{path}: holds no weights; give a checkpoint or a state dict")


def _read(path: Path, read: Callable[[], object]) -> object:
    try:
        return read()
    except pickle.UnpicklingError as error:
        reason = f"{_UNREADABLE}, or holds objects other than tensors and containers, which are not loaded"
        raise InputError(f"{path}: {reason}; copy or download it again") from error
    except ValueError as error:
        raise InputError(f"{path}: is not a checkpoint, or is damaged: {' '.join(str(error).split())}") from error
    except Exception as error:  # torch.load and pickle can raise almost any exception for files of other programs
        raise InputError(f"{path}: {_UNREADABLE}; copy or download it again") from error


def _tensor(value):
    if isinstance(value, np.ndarray):
        # A writable copy in this machine's byte order.
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value
