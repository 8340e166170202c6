"""Converts arrays to base64 text and back, for the formats that are text."""

import base64
import binascii

import numpy as np


def encode_array(array: np.ndarray, dtype: np.dtype) -> str:
    """Returns the bytes of an array, converted to ``dtype`` and in C order, as base64 text."""
    return encode_array_as_bytes(array, dtype).decode("ascii")


def encode_array_as_bytes(array: np.ndarray, dtype: np.dtype) -> bytes:
    """Returns the text of ``encode_array`` as bytes, which saves two copies where it goes to a file as it is."""
    return base64.b64encode(np.ascontiguousarray(array, dtype).data)


def decode_array(text: str | bytes, dtype: np.dtype, shape: tuple[int, ...], field: str) -> np.ndarray:
    """Returns the array that ``encode_array`` encoded, with memory of its own.

    Args:
        shape: May contain one -1, as in numpy's reshape.
        field: Name of the text in error messages.

    Raises:
        ValueError: The text is not base64, or does not fit the shape. The message is one line and names the field.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{field}: is not base64 ({error})") from error
    try:
        return np.frombuffer(data, dtype).reshape(shape).copy()
    except (ValueError, OverflowError) as error:
        boxes = f"{shape[0]} boxes" if shape[0] >= 0 else "whole boxes"
        raise ValueError(f"{field}: {len(data)} bytes do not fit {boxes}") from error
