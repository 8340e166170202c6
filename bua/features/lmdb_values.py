"""Decodes the values of images in LMDBs: those of ViLBERT, which bua writes, and those of other programs.

A value is a pickled dictionary, except UNITER's. These are recognised by their fields:

- ViLBERT (jiasenlu/vilbert_beta, script/convert_*.py): see ``bua.features.lmdb``. Some of its databases also have
  ``cls_prob`` [n, 1601] in base64, with the background in the first column.
- vilbert-multi-task (script/convert_to_lmdb.py): the same with numbers and arrays instead of text. ``num_boxes`` counts
  only the best boxes, but all of them are used.
- Volta (e-bug/volta, data/*/convert_*_lmdb.py and features_extraction): ``img_w`` and ``img_h``; labels under LXMERT's
  names, or under those of VL-T5's HDF5, or ``objects`` and ``cls_prob`` as in MMF.
- MMF (tools/scripts/features/lmdb_conversion.py): ``feature_path``, ``features``, and the fields of MMF's files.
- UNITER (scripts/convert_imgdir.py): the key ``__keys__`` has the names of its npz files as JSON, and the values have
  the arrays of these files, as msgpack of msgpack_numpy or, if they are compressed, as npz.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bua.errors import InputError, shown
from bua.features.encoding import decode_array
from bua.features.labels import FLOAT, LXMERT_LABELS, VLT5_LABELS, best_objects, numbers
from bua.features.mmf_fields import check_count, object_labels, regions_of_info
from bua.features.npy import NpzFile
from bua.features.npz_layouts import uniter_regions
from bua.io import safe_pickle
from bua.structures import Regions

UNITER_LIST_KEY = b"__keys__"

# The names of other programs for ViLBERT's fields, and for LXMERT's labels.
_NAMES: dict[str, str] = {"img_w": "image_w", "img_h": "image_h"} | {
    name: lxmert for name, label in VLT5_LABELS.items() for lxmert, other in LXMERT_LABELS.items() if label == other
}


def decode_value(image_id: int | str, value: bytes, note: Callable[[str], None], uniter: bool = False) -> Regions:
    """Returns the regions of one image.

    Args:
        note: Is called with a message about what all images of the database lack.
        uniter: Whether the value is UNITER's.

    Raises:
        ValueError: A field cannot be decoded. The message is one line and names it.
        InputError: The package msgpack is missing.
    """
    try:
        if uniter:
            return uniter_regions(image_id, _uniter_arrays(value), note)
        row = safe_pickle.loads(value)
        if not isinstance(row, dict):
            raise ValueError(f"is a {type(row).__name__} instead of a dictionary")
        if "feature_path" in row and "boxes" not in row:
            return regions_of_info(image_id, row["features"], row, note)
        known = {_NAMES.get(str(name), str(name)): cell for name, cell in row.items() if cell is not None}
        return _vilbert_regions(image_id, known)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}: is missing") from error
    except (TypeError, IndexError, OverflowError, AttributeError) as error:  # values of other types than numbers
        raise ValueError(f"{type(error).__name__}: {shown(str(error))}") from error


def uniter_keys(value: bytes) -> list[bytes]:
    """Returns the keys of the images in a database of UNITER from the value of ``__keys__``.

    Raises:
        ValueError: It is not a list of names.
    """
    try:
        names = json.loads(value)
    except RecursionError as error:
        raise ValueError("its entry '__keys__' is nested too deep") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its entry '__keys__' is not a list of names")
    return [name.encode(errors="surrogatepass") for name in dict.fromkeys(names)]


def _vilbert_regions(image_id: int | str, row: dict[str, Any]) -> Regions:
    missing = {"image_w", "image_h", "boxes", "features"} - row.keys()
    if missing:
        raise ValueError(f"{min(missing)}: is missing")
    # Where num_boxes is a number, as in vilbert-multi-task and Volta, it counts only the best boxes, and their readers
    # read all boxes.
    count = _integer(row, "num_boxes") if isinstance(row.get("num_boxes"), str) else -1
    boxes = _array(row, "boxes", FLOAT, (count, 4))
    count = len(boxes)
    check_count(row, count)
    labels: dict[str, Any] = {}
    if "cls_prob" in row:
        probabilities = row["cls_prob"]
        if isinstance(probabilities, np.ndarray):
            labels = object_labels(row, numbers("cls_prob", probabilities), count, background=False)
        else:
            # Without regions, nothing tells the number of classes.
            labels = best_objects(_array(row, "cls_prob", FLOAT, (count, -1) if count else (0, 2)), count)
    for field, (attribute, dtype) in LXMERT_LABELS.items():
        if field in row:
            labels[attribute] = _array(row, field, dtype, (count,))
    return Regions(
        image_id=image_id,
        width=_integer(row, "image_w"),
        height=_integer(row, "image_h"),
        boxes=boxes,
        features=_array(row, "features", FLOAT, (count, -1) if count else (0, 0)),
        **labels,
    )


def _array(row: dict[str, Any], field: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    value = row[field]
    if not isinstance(value, np.ndarray):
        return decode_array(value, dtype, shape, field)
    values = numbers(field, value, dtype)
    try:
        return values.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{field}: the shape {value.shape} does not fit {shape[0]} boxes") from error


def _integer(row: dict[str, Any], field: str) -> int:
    try:
        return int(row[field])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{field}: {shown(row[field])} is not a number") from error


def _uniter_arrays(value: bytes) -> Mapping[str, np.ndarray]:
    if value.startswith(b"PK"):
        try:
            with NpzFile(io.BytesIO(value)) as arrays:
                return {name: arrays.array(name) for name in sorted(arrays.names)}
        except Exception as error:  # A damaged npz file can raise almost any exception.
            raise ValueError(f"cannot be read as npz ({shown(str(error))})") from error
    try:
        import msgpack  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "msgpack: is needed for UNITER's databases; install it with pip install 'bottom-up-attention[uniter]'"
        ) from error
    try:
        # Its limits on numbers of bytes and items are those of the value itself.
        content = msgpack.unpackb(value, raw=False, strict_map_key=False)
    except Exception as error:  # Damaged msgpack can raise almost any exception.
        raise ValueError(f"cannot be read as msgpack ({shown(str(error))})") from error
    if not isinstance(content, dict):
        raise ValueError(f"is a {type(content).__name__} instead of a dictionary")
    return {name: _msgpack_array(name, array) for name, array in content.items() if isinstance(name, str)}


def _msgpack_array(name: str, content: object) -> np.ndarray:
    """Returns an array in the layout of msgpack_numpy, which itself would execute code from arrays of objects."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        # Programs such as UNITER's call msgpack_numpy.patch(), after which msgpack returns arrays.
        return content
    content = (
        {str(key, "latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        if isinstance(content, dict)
        else {}
    )
    try:
        dtype = np.dtype(content["type"])
        shape = tuple(content["shape"])
        if (
            dtype.kind not in "fiu"
            or math.prod(shape) * dtype.itemsize != len(content["data"])
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"{len(content['data'])} bytes do not fit the shape {shape} of {dtype}")
        return np.frombuffer(content["data"], dtype).reshape(shape)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name}: is not an array of numbers ({shown(str(error))})") from error
