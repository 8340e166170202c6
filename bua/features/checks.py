"""Checks the regions of an image before they are written, and the sizes that files claim before they are read."""

import numpy as np

from bua.errors import InputError
from bua.features.labels import LABEL_FIELDS
from bua.structures import Regions

# Widths and heights of images in pixels, and the numbers of classes, fit into the 32-bit integers of HDF5 and the flat
# formats.
LARGEST_NUMBER = 2**31 - 1

# Compressed data may be this much larger when they are read than they are in the file. Features become about half as
# large, but zeros a thousandth. Up to FREE_BYTES, the ratio does not matter.
LARGEST_RATIO, FREE_BYTES = 20, 64 << 20


def check_regions(regions: Regions) -> None:
    """Checks what all formats need of an image. All writers call this before they write the image.

    Raises:
        InputError: Numbers are not finite, have the wrong shape, or are too large for the integers of some format. The
            message names the image.
    """
    name = f"image {str(regions.image_id)[:40]}"
    count = len(regions)
    boxes, features = np.asarray(regions.boxes), np.asarray(regions.features)
    if (count and boxes.shape != (count, 4)) or features.ndim != 2 or len(features) != count:
        raise InputError(
            f"{name}: features have the shape {features.shape} and boxes {boxes.shape}, not (n, d) and (n, 4)"
        )
    _check_finite(name, "features", features)
    _check_finite(name, "boxes", boxes)
    for field in LABEL_FIELDS:
        values = getattr(regions, field)
        if values is None:
            continue
        if np.shape(values) != (count,):
            raise InputError(f"{name}: {field} has the shape {np.shape(values)}, but there are {count} boxes")
        if field.endswith("scores"):
            _check_finite(name, field, np.asarray(values))
        elif count and not 0 <= np.min(values) <= np.max(values) <= LARGEST_NUMBER:
            raise InputError(
                f"{name}: {field} has numbers from {np.min(values)} to {np.max(values)}; classes count from 0 and are "
                f"at most {LARGEST_NUMBER}"
            )
    if regions.class_probs is not None:
        probs = np.asarray(regions.class_probs)
        if probs.ndim != 2 or len(probs) != count:
            raise InputError(f"{name}: class_probs have the shape {probs.shape} instead of ({count}, classes)")
        _check_finite(name, "class_probs", probs)
    if problem := size_problem(regions):
        raise InputError(f"{name}: {problem}")


def check_size_is_known(regions: Regions, format: str) -> None:
    """Checks that the size of an image is known, for formats that have boxes as parts of it.

    Raises:
        InputError: The width or the height is 0, as for features of programs that do not keep sizes.
    """
    if len(regions) and not (regions.width > 0 and regions.height > 0):
        raise InputError(
            f"image {str(regions.image_id)[:40]}: its size is not known, and {format} has boxes as parts of it; "
            "convert to another format, or take features with sizes"
        )


def size_problem(regions: Regions) -> str | None:
    """Returns what is wrong with the width or height of an image, or None."""
    for field in ("width", "height"):
        value = getattr(regions, field)
        if not 0 <= value <= LARGEST_NUMBER:
            return f"{field}: is not a number of pixels from 0 to {LARGEST_NUMBER}"
    return None


def check_expansion(name: str, size: int, stored: int) -> None:
    """Checks a size in bytes that a file claims before that much is read.

    Args:
        size: Number of bytes that would be read into memory.
        stored: Number of bytes that they take in the file, which may be compressed.

    Raises:
        ValueError: The size is out of proportion. The message names ``name``.
    """
    if size > FREE_BYTES and size > LARGEST_RATIO * stored:
        raise ValueError(f"{name}: would take {size} bytes of memory, but has {stored} bytes in the file")


def _check_finite(name: str, field: str, values: np.ndarray) -> None:
    # What is written is float32.
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(values, np.float32))
    if not finite.all():
        raise InputError(
            f"{name}: {field}: {finite.size - int(finite.sum())} of {finite.size} numbers are not finite (NaN or "
            "infinite); check the weights, or extract with --precision fp32"
        )
