"""Selects the regions of an image that become its features (Anderson et al. 2018, section 3.1).

The selection runs on the host, in NumPy, for a detector on a GPU too: it is a loop of many short steps, each of which
would have to wait for the GPU. Boxes and class probabilities are copied once.
"""

import numpy as np
import torch

from bua.extraction.class_suppression import overlap_bits, suppressed_of_pairs, suppressed_of_scores
from bua.structures import RegionPredictions, Regions

# The largest share of all (region, class) pairs for which the pairs are listed one by one.
_MAX_LISTED_PAIRS = 1 / 32


def select_regions(
    boxes: torch.Tensor,
    class_probs: torch.Tensor,
    *,
    min_boxes: int = 10,
    max_boxes: int = 100,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.3,
    convention: str = "caffe",
) -> torch.Tensor:
    """Selects regions as the original does (tools/generate_tsv.py, ``get_detections_from_im``).

    The confidence of a region is its highest probability among the classes in which it survives non-maximum
    suppression, and 0 if it survives in none. If the number of regions with a confidence of at least
    ``score_threshold`` lies between ``min_boxes`` and ``max_boxes``, these regions are selected, in the order given.
    Otherwise the ``min_boxes`` or ``max_boxes`` most confident regions are selected, best first.

    If two regions are tied, in suppression or in the final order, "caffe" prefers the later one, as the original's
    ``argsort()[::-1]`` does whenever numpy's sort is stable. "detectron2" prefers the earlier one, as torchvision's
    nms does.

    Args:
        boxes: [R, 4] float x1y1x2y2, on any device.
        class_probs: [R, C] float, 0 to 1, without background; not necessarily normalised. Both are taken as float32.
        min_boxes, max_boxes: Limits on the number of selected regions, which is below ``min_boxes`` only if R is.
        score_threshold: Minimum confidence, 0 to 1.
        nms_threshold: "caffe" suppresses at an IoU (of widths x2-x1+1) of at least this value, "detectron2" above it.
        convention: "caffe" or "detectron2".

    Returns:
        [n] int64, rows of ``boxes``, on its device.
    """
    keep = choose_rows(
        _on_host(boxes),
        _on_host(class_probs),
        min_boxes=min_boxes,
        max_boxes=max_boxes,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        convention=convention,
    )
    return torch.from_numpy(keep).to(boxes.device)


def choose_rows(
    boxes: np.ndarray,
    class_probs: np.ndarray,
    *,
    min_boxes: int = 10,
    max_boxes: int = 100,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.3,
    convention: str = "caffe",
) -> np.ndarray:
    """Selects regions as ``select_regions`` does, from arrays. Threads may call this at the same time.

    Args:
        boxes: [R, 4], taken as float32.
        class_probs: [R, C], taken as float32. A probability that is not a number counts as 0.
        min_boxes, max_boxes, score_threshold, nms_threshold, convention: As for ``select_regions``.

    Returns:
        [n] int64, rows of ``boxes``.
    """
    if not 0 <= min_boxes <= max_boxes:
        raise ValueError(f"min_boxes {min_boxes} and max_boxes {max_boxes}: need 0 <= min_boxes <= max_boxes")
    count = len(boxes)
    if count == 0:
        return np.zeros(0, np.int64)
    boxes, class_probs = np.asarray(boxes, np.float32), np.asarray(class_probs, np.float32)
    confidences = _confidences(
        overlap_bits(boxes, nms_threshold, convention), class_probs, min(min_boxes, count), score_threshold, convention
    )
    confident = np.flatnonzero(confidences.astype(np.float64) >= score_threshold)
    if min_boxes <= len(confident) <= max_boxes:
        return confident
    return _best_first(confidences, convention)[: min_boxes if len(confident) < min_boxes else max_boxes]


def regions_from(
    predictions: RegionPredictions,
    image_id: int | str,
    *,
    min_boxes: int = 10,
    max_boxes: int = 100,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.3,
    convention: str = "caffe",
    regressed: bool = False,
) -> Regions:
    """Returns the selected regions of one image with their features, best object class and best attribute.

    Args:
        min_boxes, max_boxes, score_threshold, nms_threshold, convention: As for ``select_regions``. To select every
            region above the threshold, set ``min_boxes`` to 0 and ``max_boxes`` to at least the number of proposals.
        regressed: If False, boxes are the proposals that the features were pooled from, as in the original. If True,
            boxes are the proposals regressed for their best class, and the selection uses these boxes; the features
            remain those of the proposals. MILVLG's port has such boxes in its "caffe" mode 2 (bboxes), without
            features: always its MAX_BOXES most confident, best first, whatever their confidence. It also has them in
            its "d2" mode, with the proposals' features, where a region occurs once for each class that it is detected
            as.
    """
    boxes = _on_host(boxes_of_best_class(predictions) if regressed else predictions.proposals)
    class_probs = _on_host(predictions.class_probs)
    keep = choose_rows(
        boxes,
        class_probs,
        min_boxes=min_boxes,
        max_boxes=max_boxes,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        convention=convention,
    )
    rows = torch.from_numpy(keep).to(predictions.features.device)
    return _regions(predictions, image_id, boxes[keep], class_probs[keep], rows)


def regions_of_given(
    predictions: RegionPredictions, image_id: int | str, *, keep_probabilities: bool = False
) -> Regions:
    """Returns all regions in their order, for boxes that the caller gave the detector, with labels as in
    ``regions_from``, and with the probabilities of all classes if ``keep_probabilities`` is set."""
    boxes, class_probs = _on_host(predictions.proposals), _on_host(predictions.class_probs)
    regions = _regions(predictions, image_id, boxes, class_probs, slice(None))
    if keep_probabilities:
        regions.class_probs = class_probs.astype(np.float16)
    return regions


def _regions(
    predictions: RegionPredictions,
    image_id: int | str,
    boxes: np.ndarray,
    class_probs: np.ndarray,
    rows: torch.Tensor | slice,
) -> Regions:
    """Returns regions with these boxes and class probabilities, and with the features and attributes of ``rows``."""
    object_ids, object_scores = _best(class_probs)
    attribute_ids, attribute_scores = None, None
    if predictions.attribute_probs is not None:
        attribute_ids, attribute_scores = _best(_on_host(predictions.attribute_probs[rows]))
    return Regions(
        image_id=image_id,
        width=predictions.width,
        height=predictions.height,
        boxes=boxes,
        features=_on_host(predictions.features[rows]),
        object_ids=object_ids,
        object_scores=object_scores,
        attribute_ids=attribute_ids,
        attribute_scores=attribute_scores,
    )


def _on_host(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array


def boxes_of_best_class(predictions: RegionPredictions) -> torch.Tensor:
    """Returns the box of each region regressed for its most probable class, [R, 4]."""
    assert predictions.boxes is not None
    best = predictions.class_probs.argmax(dim=1)
    return predictions.boxes[torch.arange(len(best), device=best.device), best]


def _best(probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first best class [n] int64 of probabilities [n, C], and its probability [n] float32."""
    return probs.argmax(axis=1), probs.max(axis=1)


def _confidences(
    overlaps: np.ndarray, probs: np.ndarray, needed: int, score_threshold: float, convention: str
) -> np.ndarray:
    """Returns the confidences [R]. They are exact where they are at least ``score_threshold`` and for the ``needed``
    best regions; elsewhere they may be too low.

    Whether a (region, class) pair survives depends only on the pairs of the same class with a higher probability.
    Therefore the pairs with a probability of at least ``floor`` determine every confidence that reaches ``floor``.
    After a softmax they are few (at most 1 / floor per region). The floor is lowered until enough confidences reach it:
    to the best probability of more regions, but by a factor of four at most. If there are many pairs above it, as if
    the scores are flat, all pairs are used, for which the time does not depend on the probabilities.

    Args:
        overlaps: From ``overlap_bits``.
    """
    count, classes = probs.shape
    best = np.sort(probs.max(axis=1))[::-1]
    if np.isnan(best[:1]).any():
        probs = np.nan_to_num(probs, nan=0.0)
        best = np.sort(probs.max(axis=1))[::-1]
    reach = needed
    floor = min(score_threshold, float(best[needed - 1])) if needed else score_threshold
    while floor > 0:
        pairs = np.flatnonzero(probs >= floor)
        if len(pairs) > probs.size * _MAX_LISTED_PAIRS:
            break
        confidences = _confidences_of(*np.divmod(pairs, classes), overlaps, probs, convention)
        if np.count_nonzero(confidences >= floor) >= needed:
            return confidences
        reach = min(4 * reach, count)
        quarter = floor / 4 if floor > 1 / classes else 0.0
        next_best = float(best[reach - 1])
        floor = max(quarter, next_best) if next_best < floor else quarter
    suppressed = suppressed_of_scores(probs, overlaps, later_first=convention == "caffe")
    best_surviving: np.ndarray = np.where(suppressed, 0, probs).max(axis=1)
    return best_surviving


def _confidences_of(
    regions: np.ndarray, classes: np.ndarray, overlaps: np.ndarray, probs: np.ndarray, convention: str
) -> np.ndarray:
    """Returns the confidences [R] that follow from some (region, class) pairs, of which none is missing that has a
    higher probability than one of the same class."""
    scores = probs[regions, classes]
    suppressed = suppressed_of_pairs(regions, classes, scores, overlaps, later_first=convention == "caffe")
    confidences = np.zeros(len(probs), probs.dtype)
    np.maximum.at(confidences, regions[~suppressed], scores[~suppressed])
    return confidences


def _best_first(scores: np.ndarray, convention: str) -> np.ndarray:
    """Returns the indices of ``scores`` [N], best first, with ties in the convention's order."""
    if convention == "caffe":
        return np.argsort(scores, kind="stable")[::-1].copy()
    return np.argsort(-scores, kind="stable")
