"""From what the detector says about regions to the detections that are evaluated."""

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
    """The objects found in one image, as rows to be evaluated; arguments as for ``find_objects``.

    Returns:
        [n, 6] float32: class, score, x1, y1, x2, y2 in pixels of the original image; best first, equal scores in
        the order of regions and then of classes.
    """
    options = {"nms_threshold": nms_threshold, "max_detections": max_detections, "score_threshold": score_threshold}
    regions, classes = find_objects(predictions, convention=convention, **options)
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
    """The objects in one image: every region in every class, less the non-maxima and the least likely.

    Each class is suppressed by itself, on the boxes regressed for it. Then all detections that score at least as
    high as the ``max_detections``-th stay, over all classes, so that equal scores can make a few more. Source:
    bottom-up-attention, lib/fast_rcnn/test.py, test_net.

    Args:
        predictions: of one image.
        convention: ``"caffe"`` suppresses at IoU >= the threshold with widths x2 - x1 + 1, ``"detectron2"`` at IoU >
            the threshold with widths x2 - x1.
        score_threshold: only regions that score more than this in a class count in it.

    Returns:
        the region [n] and the class [n] of each object, int64; best first, equal scores in the order of regions and
        then of classes.
    """
    num_classes = predictions.class_probs.shape[1]
    scores = predictions.class_probs.float().flatten()
    boxes = predictions.boxes.float().reshape(-1, 4)
    size = 4 * max_detections
    while True:
        # Suppression looks only at better detections, so its result on the best few is final for these.
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


def attribute_detections(predictions: RegionPredictions, *, max_detections: int = 400) -> np.ndarray:
    """Each box in each attribute as a detection; those stay that score at least as high as the ``max_detections``-th.

    Source: bottom-up-attention, lib/fast_rcnn/test.py, test_net_with_gt_boxes. There the boxes also hold one row of
    zeros for each object of the image whose name is not in the vocabulary: a box that nobody annotated, but whose
    attributes take part in the contest for the 400. bua's annotations have no such objects, so under either protocol
    only real boxes are scored; who wants the original's rows gives ``[0, 0, 0, 0]`` to the detector as often.

    Args:
        predictions: of one image at the ground truth's boxes, in the order in which these were given.

    Returns:
        [n, 6] float32: attribute, score, x1, y1, x2, y2 of the box as given; best first, equal scores in the order
        of boxes and then of attributes.
    """
    num_attributes = predictions.attribute_probs.shape[1]
    scores = predictions.attribute_probs.float().flatten()
    pair = _best(scores, max_detections)
    boxes = predictions.proposals.float()[pair // num_attributes]
    rows = torch.column_stack((pair % num_attributes, scores[pair], boxes)).cpu().numpy()
    return rows[np.argsort(-rows[:, 1], kind="stable")]


def _best(scores: torch.Tensor, number: int) -> torch.Tensor:
    """Ascending indices of all scores that are at least the ``number``-th highest."""
    if number >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    return torch.nonzero(scores >= torch.topk(scores, number, sorted=False).values.min()).squeeze(1)


def _number_kept(falling_scores: np.ndarray, maximum: int) -> int:
    if len(falling_scores) <= maximum:
        return len(falling_scores)
    return int(np.searchsorted(-falling_scores, -falling_scores[maximum - 1], side="right"))


def _survivors(rows: np.ndarray, threshold: float, convention: str) -> np.ndarray:
    """Greedy non-maximum suppression within each class of rows that are sorted best first; [n] bool."""
    order = np.argsort(rows[:, 0], kind="stable")
    classes, boxes = rows[order, 0], rows[order, 2:]
    position = np.arange(len(rows))
    rivals = np.searchsorted(classes, classes, side="right") - position - 1
    has_rivals = np.flatnonzero(rivals)
    extent = 1 if convention == "caffe" else 0
    # The original compares a float32 overlap with a float64 threshold.
    threshold = np.float64(threshold)
    better, worse = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for _, left, right, _ in range_pairs(has_rivals + 1, rivals[has_rivals]):
        left = has_rivals[left]
        iou = paired_iou(boxes[left], boxes[right], extent)
        overlaps = iou >= threshold if convention == "caffe" else iou > threshold
        better.append(left[overlaps])
        worse.append(right[overlaps])
    survives = np.empty(len(rows), dtype=bool)
    survives[order] = ~_suppressed(np.concatenate(better), np.concatenate(worse), len(rows))
    return survives


def _suppressed(better: np.ndarray, worse: np.ndarray, number: int) -> np.ndarray:
    """Who is suppressed when each survivor suppresses its worse rivals; [number] bool.

    In each round those without an undecided better rival survive and suppress theirs, which settles at least the
    best of each class; the rounds are as many as the longest chain of rivals, a few in practice.
    """
    suppressed = np.zeros(number, dtype=bool)
    while len(better):
        contested = np.zeros(number, dtype=bool)
        contested[worse] = True
        suppressed[worse[~contested[better]]] = True
        undecided = contested[better] & ~suppressed[better] & ~suppressed[worse]
        better, worse = better[undecided], worse[undecided]
    return suppressed
