"""Files of weights, whatever program wrote them, recognised by their first bytes."""

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bua.errors import InputError
from bua.weights.caffemodel import read_caffemodel
from bua.weights.pickles import read_pickle

_ZIP = b"PK"
# A pickled number, with which torch.save began its files before they were zip archives.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# Protocol 2 and later; then a dict, or an object such as OrderedDict, in the protocols without a header.
_PICKLE = (b"\x80", b"(d", b"}", b"c")
# The keys of NetParameter's name (1), old layers (2), input (3) and layer (100).
_CAFFEMODEL = (b"\x0a", b"\x12", b"\x1a", b"\xa2\x06")


def read_file(path: str | Path) -> dict:
    """All that a file holds, tensors on the CPU.

    A ``.caffemodel`` comes as its arrays, see ``read_caffemodel``; everything else as the dictionary that was saved.

    Raises:
        InputError: no such file, an empty or truncated one, none that holds weights, or one that holds other Python
            objects than numbers, strings, tensors, arrays and containers. Nothing that a file says is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    with open(path, "rb") as file:
        head = file.read(len(_OLD_TORCH))
    if head.startswith((_ZIP, _OLD_TORCH)):
        content = _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    elif head.startswith(_PICKLE):
        content = _read(path, lambda: read_pickle(path))
    elif head.startswith(_CAFFEMODEL):
        content = _read(path, lambda: read_caffemodel(path))
    else:
        raise InputError(f"{path}: not a checkpoint, or a truncated one; copy or download it again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not weights; a checkpoint is needed")
    return content


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file under the names that they have there.

    Raises:
        InputError: as ``read_file``; or the file holds no weights.
    """
    content = read_file(path)
    # Detectron2 and bua save a dictionary with "model" in it, Detectron "blobs", others the tensors alone.
    weights = content.get("model", content.get("blobs", content))
    if isinstance(weights, dict):
        weights = {name: _tensor(value) for name, value in weights.items()}
        if weights and all(isinstance(n, str) and isinstance(value, Tensor) for n, value in weights.items()):
            return weights
    raise InputError(f"{path}: holds no weights; a checkpoint, or a state dict, is needed")


def _read(path: Path, read):
    try:
        return read()
    except pickle.UnpicklingError as error:
        reason = "not a checkpoint, or one with more than tensors and containers, which is not run, or a truncated one"
        raise InputError(f"{path}: {reason}; copy or download it again") from error
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint, or a damaged one: {' '.join(str(error).split())}") from error
    except Exception as error:  # torch.load and pickle raise about anything on what was not written by them
        raise InputError(f"{path}: not a checkpoint, or a truncated one; copy or download it again") from error


def _tensor(value):
    if isinstance(value, np.ndarray):
        # A copy in this machine's byte order, which may be written to.
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value
