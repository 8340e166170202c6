"""Selects, from the detector's predictions for all regions, the detections that are evaluated."""

import numpy as np
import torch

from bua.overlap import paired_iou, range_pairs
from bua.structures import RegionPredictions


def object_detections(
    predictions: RegionPredictions,
    *,
    convention: str = "caffe",
    nms_threshold: float = 0.3,
    max_detections: int = 400,
    score_threshold: float = -np.inf,
) -> np.ndarray:
    """Returns the objects found in one image as rows for the evaluation. The arguments are those of ``find_objects``.

    Returns:
        [n, 6] float32: class, score, x1, y1, x2, y2 in pixels of the original image, in descending order of scores.
        Equal scores are in the order of regions and then of classes.
    """
    regions, classes = find_objects(
        predictions,
        convention=convention,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        score_threshold=score_threshold,
    )
    assert predictions.boxes is not None  # find_objects needs them too
    scores, boxes = predictions.class_probs[regions, classes], predictions.boxes[regions, classes]
    return torch.column_stack((classes, scores.float(), boxes.float())).cpu().numpy()


def find_objects(
    predictions: RegionPredictions,
    *,
    convention: str = "caffe",
    nms_threshold: float = 0.3,
    max_detections: int = 400,
    score_threshold: float = -np.inf,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the objects in one image, each of which is a region and a class.

    Non-maximum suppression is applied to each class separately, with the boxes that are regressed for this class. Then
    the ``max_detections`` best detections over all classes are kept, and those whose score equals the last of these.
    Source: bottom-up-attention, lib/fast_rcnn/test.py, test_net.

    Args:
        predictions: The detector's predictions for one image, with ``boxes``.
        convention: ``"caffe"`` suppresses at IoU >= ``nms_threshold`` with widths x2 - x1 + 1, ``"detectron2"`` at
            IoU > ``nms_threshold`` with widths x2 - x1.
        nms_threshold: IoU at which the box with the lower score is suppressed.
        max_detections: Number of detections that are kept, apart from equal scores.
        score_threshold: A region is considered for a class only if its score exceeds this.

    Returns:
        The region [n] and the class [n] of each object, int64, in descending order of scores. Equal scores are in the
        order of regions and then of classes.
    """
    assert predictions.boxes is not None
    num_classes = predictions.class_probs.shape[1]
    scores = predictions.class_probs.float().flatten()
    boxes = predictions.boxes.float().reshape(-1, 4)
    size = 4 * max_detections
    while True:
        # Whether a detection is suppressed depends only on better ones, so the result for the best few is final.
        chosen = _best(scores, size)
        pair = chosen[scores[chosen] > score_threshold]
        rows = torch.column_stack((pair % num_classes, scores[pair], boxes[pair])).cpu().numpy()
        order = np.argsort(-rows[:, 1], kind="stable")
        order = order[_survivors(rows[order], nms_threshold, convention)]
        if len(order) >= max_detections or len(pair) < len(chosen) or len(chosen) == len(scores):
            order = order[: _number_kept(rows[order, 1], max_detections)]
            found = pair[torch.from_numpy(order).to(pair.device)]
            return found // num_classes, found % num_classes
        size *= 4


def attribute_detections(
    predictions: RegionPredictions, *, max_detections: int = 400, num_boxes: int | None = None
) -> np.ndarray:
    """Returns the detections of attributes in one image, each of which is a box and an attribute.

    The ``max_detections`` best detections are kept, and those whose score equals the last of these. Source:
    bottom-up-attention, lib/fast_rcnn/test.py, test_net_with_gt_boxes.

    Args:
        predictions: The detector's predictions for the boxes of the ground truth of one image, with
            ``attribute_probs``, and for the original's rows of zeros if these are wanted
            (``bua.detection.evaluation.zero_rows``).
        max_detections: Number of detections that are kept, apart from equal scores.
        num_boxes: Number of boxes to use, from the first one on. By default all are used.

    Returns:
        [n, 6] float32: attribute, score, x1, y1, x2, y2 of the given box, in descending order of scores. Equal scores
        are in the order of boxes and then of attributes.
    """
    assert predictions.attribute_probs is not None
    num_attributes = predictions.attribute_probs.shape[1]
    scores = predictions.attribute_probs[:num_boxes].float().flatten()
    pair = _best(scores, max_detections)
    boxes = predictions.proposals.float()[pair // num_attributes]
    rows = torch.column_stack((pair % num_attributes, scores[pair], boxes)).cpu().numpy()
    return rows[np.argsort(-rows[:, 1], kind="stable")]


def _best(scores: torch.Tensor, number: int) -> torch.Tensor:
    """Returns, in ascending order, the indices of all scores that are at least the ``number``-th highest."""
    if number >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    return torch.nonzero(scores >= torch.topk(scores, number, sorted=False).values.min()).squeeze(1)


def _number_kept(scores: np.ndarray, maximum: int) -> int:
    """Returns how many of the descending ``scores`` are at least the ``maximum``-th."""
    if len(scores) <= maximum:
        return len(scores)
    return int(np.searchsorted(-scores, -scores[maximum - 1], side="right"))


def _survivors(rows: np.ndarray, threshold: float, convention: str) -> np.ndarray:
    """Applies greedy non-maximum suppression within each class to rows in descending order of scores.

    Returns:
        [n] bool: whether a row (class, score, x1, y1, x2, y2) is kept.
    """
    order = np.argsort(rows[:, 0], kind="stable")
    classes, boxes = rows[order, 0], rows[order, 2:]
    position = np.arange(len(rows))
    # Each row is compared with the rows of its class that come after it.
    num_after = np.searchsorted(classes, classes, side="right") - position - 1
    compared = np.flatnonzero(num_after)
    extent = 1 if convention == "caffe" else 0
    # The original compares a float32 overlap with a float64 threshold.
    limit = np.float64(threshold)
    better, worse = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for _, left, right, _ in range_pairs(compared + 1, num_after[compared]):
        left = compared[left]
        iou = paired_iou(boxes[left], boxes[right], extent)
        overlaps = iou >= limit if convention == "caffe" else iou > limit
        better.append(left[overlaps])
        worse.append(right[overlaps])
    survives = np.empty(len(rows), dtype=bool)
    survives[order] = ~_suppressed(np.concatenate(better), np.concatenate(worse), len(rows))
    return survives


def _suppressed(better: np.ndarray, worse: np.ndarray, number: int) -> np.ndarray:
    """Decides which of ``number`` detections are suppressed if each kept detection suppresses those it overlaps.

    In each round, a detection is kept if no better detection that overlaps it is undecided, and it suppresses the worse
    ones that it overlaps. Each round decides at least the best detection of each class. There are as many rounds as the
    longest chain of overlapping detections, which is a few in practice.

    Args:
        better, worse: [P] int64 indices of the pairs of detections that overlap.
        number: Number of detections.

    Returns:
        [number] bool.
    """
    suppressed = np.zeros(number, dtype=bool)
    while len(better):
        contested = np.zeros(number, dtype=bool)
        contested[worse] = True
        suppressed[worse[~contested[better]]] = True
        undecided = contested[better] & ~suppressed[better] & ~suppressed[worse]
        better, worse = better[undecided], worse[undecided]
    return suppressed
