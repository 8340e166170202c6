"""Non-maximum suppression of regions for all classes at once, on the host.

The regions that a region overlaps are a row of bits, and so are the regions that are suppressed in a class. Suppression
runs over the ranks: first for the best region of every class, then for the second best, and so on. A step takes as many
classes as have a region of this rank.
"""

from collections.abc import Iterator

import numpy as np

# Number of ranks that are prepared together: as many as the processor's cache holds.
_RANKS_AT_A_TIME = 16

# A key has the inverted bits of a score (its sign is 0), so that the best comes first, and below them the region.
_SCORE_BITS = 31


def overlap_bits(boxes: np.ndarray, threshold: float, convention: str) -> np.ndarray:
    """Returns which regions suppress each other.

    Args:
        boxes: [R, 4] float32 x1y1x2y2.
        threshold: Of the intersection over union. "caffe" suppresses at this value (of widths x2-x1+1), "detectron2"
            above it.

    Returns:
        [R + 1, W] uint64. Bit ``j`` of row ``i``, counted from the lowest bit of its first word, tells whether the
        regions ``i`` and ``j`` suppress each other, which a region and itself do not. The last row is empty.
    """
    count = len(boxes)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    offset = np.float32(1 if convention == "caffe" else 0)
    # The operations and their order are those of bua.modeling.boxes.pairwise_iou, whose results these are to the bit.
    intersection = _extents(x1, x2, offset)
    intersection *= _extents(y1, y2, offset)
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    union = areas[:, None] + areas
    union -= intersection
    iou = np.zeros_like(union)
    np.divide(intersection, union, out=iou, where=union > 0)
    # IoUs are compared in double precision, as in the original and in torchvision: 0.3 rounded to single exceeds 0.3.
    limit = np.float64(threshold)
    overlaps = np.greater_equal(iou, limit) if convention == "caffe" else np.greater(iou, limit)
    np.fill_diagonal(overlaps, False)
    bits = np.zeros((count + 1, (count // 64 + 1) * 8), np.uint8)
    packed = np.packbits(overlaps, axis=1, bitorder="little")
    bits[:count, : packed.shape[1]] = packed
    return bits.view(np.uint64)


def suppressed_of_pairs(
    regions: np.ndarray, classes: np.ndarray, scores: np.ndarray, overlaps: np.ndarray, *, later_first: bool
) -> np.ndarray:
    """Returns which (region, class) pairs do not survive suppression among these pairs, [N] bool.

    Args:
        regions, classes: [N] int64, without duplicate pairs.
        scores: [N] float32, above 0.
        overlaps: From ``overlap_bits``.
        later_first: Of two regions with the same score, prefer the one with the higher number.
    """
    # The classes become lanes. Those with the most pairs come first, so that a step takes the first few lanes.
    counts = np.bincount(classes)
    by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    lane_of_class = np.zeros(len(counts), np.int64)
    lane_of_class[by_count] = np.arange(len(by_count))
    lanes, counts = lane_of_class[classes], counts[by_count]

    count = len(overlaps) - 1
    shift = count.bit_length()
    keys = _keys(scores, count - regions if later_first else regions, shift)
    keys |= lanes.astype(np.uint64) << np.uint64(shift + _SCORE_BITS)
    keys.sort()
    ordered = (keys & np.uint64((1 << shift) - 1)).astype(np.intp)
    lane = (keys >> np.uint64(shift + _SCORE_BITS)).astype(np.intp)
    rank = np.arange(len(keys)) - (np.cumsum(counts) - counts)[lane]
    order = np.full((int(counts.max(initial=0)), len(counts)), count)
    order[rank, lane] = count - ordered if later_first else ordered
    blocks = (
        order[start : start + _RANKS_AT_A_TIME, : np.count_nonzero(counts > start)]
        for start in range(0, len(order), _RANKS_AT_A_TIME)
    )
    suppressed: np.ndarray = _suppress(blocks, len(counts), overlaps)[lanes, regions]
    return suppressed


def suppressed_of_scores(scores: np.ndarray, overlaps: np.ndarray, *, later_first: bool) -> np.ndarray:
    """Returns in which classes the regions do not survive suppression, [R, C] bool.

    Args:
        scores: [R, C] float32, at least 0.
        overlaps, later_first: As for ``suppressed_of_pairs``.
    """
    count, classes = scores.shape
    shift = count.bit_length()
    numbers = np.arange(count)
    keys = _keys(scores.T, count - numbers if later_first else numbers, shift)
    keys.sort(axis=1)
    return _suppress(_blocks_of(keys, shift, count if later_first else None), classes, overlaps).T


def _extents(low: np.ndarray, high: np.ndarray, offset: np.float32) -> np.ndarray:
    """Returns the length [R, R] along one axis of the intersection of each two boxes."""
    extents: np.ndarray = np.minimum(high[:, None], high)
    extents -= np.maximum(low[:, None], low)
    extents += offset
    np.maximum(extents, 0, out=extents)
    return extents


def _keys(scores: np.ndarray, numbers: np.ndarray, shift: int) -> np.ndarray:
    """Returns keys [...] uint64, whose ascending order is that of descending scores, and then of ascending numbers.

    Args:
        scores: [...] float32, at least 0.
        numbers: Of ``shift`` bits, for the last dimension.
    """
    # Of numbers that are not negative, the bits have the order of the numbers.
    inverted = np.uint32((1 << _SCORE_BITS) - 1) - np.abs(scores).view(np.uint32)
    keys: np.ndarray = inverted.astype(np.uint64, order="C")
    keys <<= np.uint64(shift)
    keys |= numbers.astype(np.uint64)
    return keys


def _blocks_of(keys: np.ndarray, shift: int, reversed_from: int | None) -> Iterator[np.ndarray]:
    """Yields the regions [ranks, C] of a few ranks at a time from sorted keys [C, R], whose numbers count down from
    ``reversed_from`` if it is given."""
    mask = np.uint64((1 << shift) - 1)
    for start in range(0, keys.shape[1], _RANKS_AT_A_TIME):
        numbers = (keys[:, start : start + _RANKS_AT_A_TIME].T & mask).astype(np.intp, order="C")
        yield numbers if reversed_from is None else reversed_from - numbers


def _suppress(blocks: Iterator[np.ndarray], lanes: int, overlaps: np.ndarray) -> np.ndarray:
    """Returns which regions are suppressed in each lane, [lanes, R] bool.

    Args:
        blocks: The regions [ranks, width] of the next ranks in the first ``width`` lanes, best rank first. R stands for
            no region. The arrays are changed.
    """
    count, words = len(overlaps) - 1, overlaps.shape[1]
    suppressed = np.zeros((lanes, words), np.uint64)
    as_bytes = suppressed.view(np.uint8)
    flat, first_byte = as_bytes.ravel(), np.arange(lanes) * (words * 8)
    bit_of = np.left_shift(np.uint8(1), np.arange(count + 1) & 7, dtype=np.uint8, casting="unsafe")
    rows = np.empty((lanes, words), np.uint64)
    for block in blocks:
        width = block.shape[1]
        bytes_of, bits_of = (block >> 3) + first_byte[:width], bit_of.take(block)
        for regions, at, bits in zip(block, bytes_of, bits_of):
            # A region that is suppressed suppresses nothing, like the last row.
            regions[flat.take(at) & bits != 0] = count
            # Every index is in range. "clip" lets numpy write to ``rows`` without a buffer.
            overlaps.take(regions, axis=0, out=rows[:width], mode="clip")
            suppressed[:width] |= rows[:width]
    # A survivor is never suppressed later: a region that overlaps it is suppressed by it, and suppresses nothing.
    unpacked = np.unpackbits(as_bytes, axis=1, bitorder="little", count=count)
    return unpacked.view(np.bool_)
