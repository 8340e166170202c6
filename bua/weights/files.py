"""Reads files of weights from different programs, whose kind is recognised by their first bytes, and opens new ones."""

import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from bua.errors import InputError
from bua.io.files import whole_file
from bua.terminal import printable
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
    # Unlike Path.is_file, os.path.isfile never raises, for example for a name that is too long.
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name the checkpoint file in it")
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise InputError(f"{path}: is not a regular file; name a checkpoint")
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


def check_finite(weights: Mapping[str, object], source: str | Path) -> None:
    """Checks that weights are finite: from others a detector would find nothing, and a task's model answer anything.

    Args:
        weights: Tensors by name. Other values are ignored.
        source: The file that they are from, for the message.

    Raises:
        InputError: A value is NaN or infinite. The message names the file and the first such tensor.
    """
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        # A tensor may repeat few values without end, or have none, as on the device "meta".
        needed = value.numel() * value.element_size()
        if value.is_meta or value.layout != torch.strided or value.untyped_storage().nbytes() < needed:
            raise InputError(f"{source}: {name} is stored with fewer values than its shape; give another checkpoint")
        if not value.is_floating_point() and not value.is_complex():
            continue
        # The sum, which takes a fiftieth of the time of isfinite, is not finite if a value is not, or if it overflows.
        # In float32, in which networks compute, a number of float64 may be infinite.
        value = value.float() if value.dtype == torch.float64 else value
        if not math.isfinite(value.sum().abs()) and not value.isfinite().all():
            raise InputError(
                f"{source}: {name} has values that are NaN or infinite, as after a training that diverged; give "
                "another checkpoint, or download it again"
            )


def _read(path: Path, read: Callable[[], object]) -> object:
    try:
        return read()
    except pickle.UnpicklingError as error:
        reason = f"{_UNREADABLE}, or holds objects other than tensors and containers, which are not loaded"
        raise InputError(f"{path}: {reason}; copy or download it again") from error
    except ValueError as error:
        reason = " ".join(printable(error).split())
        raise InputError(f"{path}: is not a checkpoint, or is damaged: {reason}") from error
    except Exception as error:  # torch.load and pickle can raise almost any exception for files of other programs
        raise InputError(f"{path}: {_UNREADABLE}; copy or download it again") from error


def _tensor(value):
    if isinstance(value, np.ndarray):
        # A writable copy in this machine's byte order.
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value


@contextmanager
def written_whole(path: Path, elsewhere: str) -> Iterator[BinaryIO]:
    """A context in which a file that ``torch.save`` may write to is open. It appears only when it is complete. A lock
    must keep other processes from writing it, such as that of the folder of a run.

    Args:
        elsewhere: What the message says to name instead, such as "folder".

    Raises:
        InputError: The disk is full, or the file cannot be written. An older file of this name is kept.
    """
    try:
        with whole_file(path, durable=True, locked=True) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # If writing fails, torch raises a RuntimeError of its own instead of the file's error.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else "the disk is full or has failed"
        raise InputError(f"{path}: cannot be written: {reason}; free space, or name another {elsewhere}") from error
