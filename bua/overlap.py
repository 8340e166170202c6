"""Intersection over union (IoU) of many pairs of boxes at once, where the pairs are given as ranges of rows."""

from collections.abc import Iterator

import numpy as np

# Number of pairs that are processed at a time. It is large enough to make numpy's overhead per call negligible, and
# small enough for a block to stay in the cache.
BLOCK_PAIRS = 1 << 18


def paired_iou(a: np.ndarray, b: np.ndarray, extent: int) -> np.ndarray:
    """Returns the IoU of each box in ``a`` with the box in the same row of ``b``.

    Args:
        a, b: [P, 4] x1y1x2y2, both of the same floating dtype, in which the result is computed.
        extent: 1 if a box includes the pixel of its last corner (its width is x2 - x1 + 1), otherwise 0.

    Returns:
        [P], 0 to 1; 0 for two empty boxes.
    """
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + extent
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + extent
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = _area(a, extent) + _area(b, extent) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def range_pairs(first: np.ndarray, length: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs each row ``i`` with the numbers ``first[i], ..., first[i] + length[i] - 1``, block by block.

    Args:
        first, length: [n] int64; every length is at least 1.

    Yields:
        (rows, left, right, starts). ``rows``: the slice of rows in this block. ``left`` [P]: the row of each pair, in
        ascending order. ``right`` [P]: the number that the row is paired with, ascending within a row. ``starts``: the
        position in ``left`` at which each row of the block begins.
    """
    ends = np.cumsum(length)
    begin = 0
    while begin < len(first):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + BLOCK_PAIRS, side="right")), begin + 1)
        starts = ends[begin:end] - length[begin:end] - done
        left = np.repeat(np.arange(begin, end), length[begin:end])
        right = np.arange(len(left)) + np.repeat(first[begin:end] - starts, length[begin:end])
        yield slice(begin, end), left, right, starts
        begin = end


def _area(boxes: np.ndarray, extent: int) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + extent) * (boxes[:, 3] - boxes[:, 1] + extent)
