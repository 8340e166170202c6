"""Arrays as base64 text, as the formats that are text hold them."""

import base64
import binascii

import numpy as np


def encode_array(array: np.ndarray, dtype: np.dtype) -> str:
    """The bytes of an array in C order, converted to ``dtype``."""
    return base64.b64encode(np.ascontiguousarray(array, dtype)).decode()


def decode_array(text: str | bytes, dtype: np.dtype, shape: tuple[int, ...], field: str) -> np.ndarray:
    """The array that ``encode_array`` made text of, with memory of its own.

    Args:
        shape: may have one -1, as in numpy's reshape.
        field: what messages call the text.

    Raises:
        ValueError: one line that names the field: it is not base64, or does not fit the shape.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{field}: not base64 ({error})") from error
    try:
        return np.frombuffer(data, dtype).reshape(shape).copy()
    except ValueError as error:
        raise ValueError(f"{field}: {len(data)} bytes do not fit {shape[0]} boxes") from error
