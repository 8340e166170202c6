"""Average precision per class, as the original evaluates Visual Genome and without its distortions.

Source of the protocol ``original``: bottom-up-attention, lib/datasets/vg.py (what is written to the result files)
and lib/datasets/vg_eval.py (what is read from them). Both protocols are Pascal VOC's of 2010: a detection is right
when it overlaps the ground truth of its class that it overlaps most by more than the threshold, and no better
detection has taken that one; the precision is the area under the envelope of the precision-recall curve.

- ``original``: scores count as written with three decimals and coordinates as written, plus one, with one
  decimal, though the ground truth is not moved; a box covers the pixels of both its corners (width x2 - x1 + 1).
- ``corrected``: none of these: the numbers as they are and width x2 - x1.

Detections of equal score stay in the order in which they are given, which is the order of the original's result
files when that is by image and then by falling score (the original's own sort is unstable, so its order of ties is
not defined).
"""

from dataclasses import dataclass

import numpy as np

from bua.errors import InputError
from bua.overlap import paired_iou, range_pairs

PROTOCOLS = ("original", "corrected")


@dataclass(frozen=True)
class PrecisionRecall:
    """How one class fares as its detections are admitted one after another, best first.

    Attributes:
        precision: [n] float64, right detections among the admitted.
        recall: [n] float64, right detections among the ``count`` in the ground truth; zeros where there are none.
        scores: [n] float64, the score of the detection admitted last, as the protocol reads it.
        count: boxes of this class in the ground truth.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    count: int

    @property
    def average_precision(self) -> float:
        """Area under the envelope of the curve, 0 to 1; 0 without ground truth or detections."""
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * envelope))


def average_precision(
    detections: np.ndarray,
    ground_truth: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    protocol: str = "original",
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision of each class.

    Args:
        detections: [N, 7] image, class, score, x1, y1, x2, y2. Images are whole numbers, classes count from 0, boxes
            are in pixels of the original image. ``original`` rounds as the original's printing does where scores
            and coordinates are float32 numbers (as a detector's are), in whatever dtype they come.
        ground_truth: [M, 6] image, class, x1, y1, x2, y2. A box with several attributes is several rows.
        num_classes: C.
        iou_threshold: a match overlaps by more than this.
        protocol: one of ``PROTOCOLS``.

    Returns:
        ap: [C] float64, 0 to 1; 0 for a class without ground truth or without detections.
        count: [C] int64, boxes of each class in the ground truth.

    Raises:
        InputError: an array of another shape, a class out of range, a number that is not finite, an unknown protocol.
    """
    curves = precision_recall(detections, ground_truth, num_classes, iou_threshold, protocol)
    return np.array([curve.average_precision for curve in curves]), np.array([curve.count for curve in curves])


def precision_recall(
    detections: np.ndarray,
    ground_truth: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    protocol: str = "original",
) -> list[PrecisionRecall]:
    """The precision-recall curve of each class, in the order of the classes; arguments as ``average_precision``."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: {protocol!r} is not known; use one of {PROTOCOLS}")
    detections = _checked(detections, "detections", 7, num_classes)
    ground_truth = _checked(ground_truth, "ground_truth", 6, num_classes)

    scores, boxes = detections[:, 2], detections[:, 3:]
    if protocol == "original":
        scores, boxes = _as_written(scores, 3), _as_written(boxes + 1, 1)
    classes = detections[:, 1].astype(np.int64)
    order = np.lexsort((-scores, classes))
    classes, scores = classes[order], scores[order]

    match = _best_match(
        _image_and_class(detections[order], num_classes),
        boxes[order],
        _image_and_class(ground_truth, num_classes),
        ground_truth[:, 2:],
        iou_threshold,
        extent=1 if protocol == "original" else 0,
    )
    right = _first_of_each(match)

    count = np.bincount(ground_truth[:, 1].astype(np.int64), minlength=num_classes)
    bounds = np.searchsorted(classes, np.arange(num_classes + 1))
    return [
        _curve(right[begin:end], scores[begin:end], int(total))
        for begin, end, total in zip(bounds[:-1], bounds[1:], count)
    ]


def mean_average_precision(ap: np.ndarray, count: np.ndarray) -> tuple[float, float]:
    """Mean over all classes, and mean weighted by each class's share of the ground truth.

    Classes without ground truth count in the first with their 0, as in the original.

    Args:
        ap, count: [C] as ``average_precision`` returns them.
    """
    total = np.sum(count)
    weighted = np.dot(ap, count) / total if total else 0.0
    return float(np.mean(ap)), float(weighted)


def _checked(rows: np.ndarray, name: str, columns: int, num_classes: int) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InputError(f"{name}: its shape is {list(rows.shape)}; give [rows, {columns}]")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InputError(f"{name}: row {np.argmin(finite)} holds NaN or infinity; leave it out or mend what made it")
    classes = rows[:, 1]
    if len(rows) and (classes.min() < 0 or classes.max() >= num_classes):
        raise InputError(f"{name}: classes {classes.min():g} to {classes.max():g}; give 0 to {num_classes - 1}")
    return rows


def _as_written(values: np.ndarray, decimals: int) -> np.ndarray:
    # Exactly what printf's "%.<decimals>f" gives when read back, for values that float32 can hold: their product with
    # the power of ten is exact in float64, and both round halves to even.
    scale = 10.0**decimals
    return np.rint(values * scale) / scale


def _image_and_class(rows: np.ndarray, num_classes: int) -> np.ndarray:
    return rows[:, 0].astype(np.int64) * num_classes + rows[:, 1].astype(np.int64)


def _best_match(
    key: np.ndarray, boxes: np.ndarray, gt_key: np.ndarray, gt_boxes: np.ndarray, iou_threshold: float, extent: int
) -> np.ndarray:
    """For each detection the ground truth of the same key that it overlaps most, the first of equals; [N] int64, a
    number that belongs to that ground truth, or -1 where the overlap is not above the threshold."""
    match = np.full(len(key), -1)
    if not len(gt_key):
        return match
    gt_order = np.argsort(gt_key, kind="stable")
    gt_boxes = gt_boxes[gt_order]
    groups, first, length = np.unique(gt_key[gt_order], return_index=True, return_counts=True)
    group = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
    candidates = np.flatnonzero(groups[group] == key)
    group = group[candidates]
    for rows, left, right, starts in range_pairs(first[group], length[group]):
        iou = paired_iou(boxes[candidates[left]], gt_boxes[right], extent)
        best = np.maximum.reduceat(iou, starts)
        is_best = iou == best[left - rows.start]
        winner = np.minimum.reduceat(np.where(is_best, right, len(gt_boxes)), starts)
        match[candidates[rows]] = np.where(best > iou_threshold, winner, -1)
    return match


def _first_of_each(match: np.ndarray) -> np.ndarray:
    """[N] bool: whether a detection is the first with its match; never where the match is -1."""
    first = np.zeros(len(match), dtype=bool)
    found, index = np.unique(match, return_index=True)
    first[index[found >= 0]] = True
    return first


def _curve(right: np.ndarray, scores: np.ndarray, count: int) -> PrecisionRecall:
    hits = np.cumsum(right)
    return PrecisionRecall(hits / np.arange(1, len(hits) + 1), hits / max(count, 1), scores, count)
