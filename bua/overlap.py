"""Intersection over union of many pairs of boxes at once, for pairs that are given as ranges of rows."""

from collections.abc import Iterator

import numpy as np

# Pairs held in memory at a time: enough that numpy's overhead per call is nothing, little enough to stay in cache.
BLOCK = 1 << 18


def paired_iou(a: np.ndarray, b: np.ndarray, extent: int) -> np.ndarray:
    """IoU of each box with the box beside it.

    Args:
        a, b: [P, 4] x1y1x2y2 of one floating dtype, in which the result is computed.
        extent: 1 where a box covers the pixel of its last corner (width x2 - x1 + 1), else 0.

    Returns:
        [P], 0 to 1; 0 where both boxes are empty.
    """
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + extent
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + extent
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = _area(a, extent) + _area(b, extent) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def range_pairs(first: np.ndarray, length: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs row ``i`` with each of ``first[i], ..., first[i] + length[i] - 1``, block by block.

    Args:
        first, length: [n] int64; every length is at least 1.

    Yields:
        ``rows``: the slice of rows in this block; ``left`` [P]: the row of each pair, ascending; ``right`` [P]: the
        number it is paired with, ascending within a row; ``starts``: where in ``left`` each row of the block begins.
    """
    ends = np.cumsum(length)
    begin = 0
    while begin < len(first):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + BLOCK, side="right")), begin + 1)
        starts = ends[begin:end] - length[begin:end] - done
        left = np.repeat(np.arange(begin, end), length[begin:end])
        right = np.arange(len(left)) + np.repeat(first[begin:end] - starts, length[begin:end])
        yield slice(begin, end), left, right, starts
        begin = end


def _area(boxes: np.ndarray, extent: int) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + extent) * (boxes[:, 3] - boxes[:, 1] + extent)
