"""Computes average precision per class, as the original evaluates Visual Genome and without its distortions.

Source of the protocol ``original``: bottom-up-attention, lib/datasets/vg.py (which writes the result files) and
lib/datasets/vg_eval.py (which reads them). Both protocols follow Pascal VOC 2010. A detection is matched with the
ground truth of its class that it overlaps most. It is correct if this overlap exceeds the threshold and no detection
with a higher score is matched with the same ground truth. The average precision is the area under the envelope of the
precision-recall curve.

- ``original``: Scores are rounded to three decimals. Coordinates of detections are increased by one and rounded to one
  decimal, while those of the ground truth are not changed. A box includes the pixels of both its corners (width
  x2 - x1 + 1).
- ``corrected``: Scores and coordinates are not changed, and the width of a box is x2 - x1.

Detections of equal score stay in the order in which they are given. This is the order of the original's result files
if detections are sorted by image and then by descending score. (The original's own sort is not stable, so its order of
equal scores is undefined.)
"""

from dataclasses import dataclass

import numpy as np

from bua.errors import InputError
from bua.overlap import paired_iou, range_pairs

PROTOCOLS = ("original", "corrected")


@dataclass(frozen=True)
class PrecisionRecall:
    """The precision-recall curve of one class: element i describes the i + 1 detections with the highest scores.

    Attributes:
        precision: [n] float64, the number of correct detections divided by the number of detections.
        recall: [n] float64, the number of correct detections divided by ``count``. Zeros if ``count`` is zero.
        scores: [n] float64, the score of detection i, rounded as the protocol says.
        count: Number of boxes of this class in the ground truth.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    count: int

    @property
    def average_precision(self) -> float:
        """The area under the envelope of the curve, 0 to 1. It is 0 without ground truth or detections."""
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * envelope))


def average_precision(
    detections: np.ndarray,
    ground_truth: np.ndarray,
    num_classes: int,
    iou_threshold: float = 0.5,
    protocol: str = "original",
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the average precision of each class.

    Args:
        detections: [N, 7] image, class, score, x1, y1, x2, y2. Images are whole numbers, classes count from 0, boxes
            are in pixels of the original image. With ``original``, numbers are rounded exactly as the original prints
            them if float32 can represent them (as for a detector's output), whatever the dtype of the array.
        ground_truth: [M, 6] image, class, x1, y1, x2, y2. A box with several attributes is several rows.
        num_classes: Number of classes C.
        iou_threshold: IoU that a detection must exceed to match the ground truth.
        protocol: One of ``PROTOCOLS``.

    Returns:
        ap: [C] float64, 0 to 1. It is 0 for a class without ground truth or without detections.
        count: [C] int64, the number of boxes of each class in the ground truth.

    Raises:
        InputError: An array has another shape, or contains a class out of range or a number that is not finite, or the
            protocol is unknown.
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
    """Returns the precision-recall curve of each class, in the order of the classes.

    The arguments are those of ``average_precision``.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: {protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
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
    correct = _first_of_each(match)

    count = np.bincount(ground_truth[:, 1].astype(np.int64), minlength=num_classes)
    bounds = np.searchsorted(classes, np.arange(num_classes + 1))
    return [
        _curve(correct[begin:end], scores[begin:end], int(total))
        for begin, end, total in zip(bounds[:-1], bounds[1:], count)
    ]


def mean_average_precision(ap: np.ndarray, count: np.ndarray) -> tuple[float, float]:
    """Returns the mean over all classes, and the mean weighted by the number of boxes in the ground truth.

    Classes without ground truth are included in the first mean, with an average precision of 0, as in the original.

    Args:
        ap, count: [C], as ``average_precision`` returns them.
    """
    total = np.sum(count)
    weighted = np.dot(ap, count) / total if total else 0.0
    return float(np.mean(ap)), float(weighted)


def _checked(rows: np.ndarray, name: str, columns: int, num_classes: int) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InputError(f"{name}: its shape is {list(rows.shape)}; it must be [rows, {columns}]")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InputError(f"{name}: row {np.argmin(finite)} contains NaN or infinity; remove it or correct its source")
    classes = rows[:, 1]
    if len(rows) and (classes.min() < 0 or classes.max() >= num_classes):
        raise InputError(f"{name}: classes {classes.min():g} to {classes.max():g}; they must be 0 to {num_classes - 1}")
    return rows


def _as_written(values: np.ndarray, decimals: int) -> np.ndarray:
    # For values that float32 can represent, this is exactly the number that printf("%.<decimals>f") prints: the product
    # with the power of ten is exact in float64, and both round halves to even.
    scale = 10.0**decimals
    return np.rint(values * scale) / scale


def _image_and_class(rows: np.ndarray, num_classes: int) -> np.ndarray:
    return rows[:, 0].astype(np.int64) * num_classes + rows[:, 1].astype(np.int64)


def _best_match(
    key: np.ndarray, boxes: np.ndarray, gt_key: np.ndarray, gt_boxes: np.ndarray, iou_threshold: float, extent: int
) -> np.ndarray:
    """Finds for each detection the ground truth of the same key that it overlaps most, the first of equal ones.

    Returns:
        [N] int64: a number that identifies this ground truth, or -1 if the overlap does not exceed the threshold.
    """
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
    """Returns [N] bool: whether a detection is the first one with its match. It is False where the match is -1."""
    first = np.zeros(len(match), dtype=bool)
    found, index = np.unique(match, return_index=True)
    first[index[found >= 0]] = True
    return first


def _curve(correct: np.ndarray, scores: np.ndarray, count: int) -> PrecisionRecall:
    num_correct = np.cumsum(correct)
    precision = num_correct / np.arange(1, len(num_correct) + 1)
    return PrecisionRecall(precision, num_correct / max(count, 1), scores, count)
