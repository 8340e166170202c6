"""Selects the regions of an image that become its features (Anderson et al. 2018, section 3.1)."""

import numpy as np
import torch

from bua.modeling.boxes import pairwise_iou
from bua.structures import RegionPredictions, Regions


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
        boxes: [R, 4] float x1y1x2y2.
        class_probs: [R, C] float, 0 to 1, without background; not necessarily normalised.
        min_boxes, max_boxes: Limits on the number of selected regions, which is below ``min_boxes`` only if R is.
        score_threshold: Minimum confidence, 0 to 1.
        nms_threshold: "caffe" suppresses at an IoU (of widths x2-x1+1) of at least this value, "detectron2" above it.
        convention: "caffe" or "detectron2".

    Returns:
        [n] int64, rows of ``boxes``, on its device.
    """
    if not 0 <= min_boxes <= max_boxes:
        raise ValueError(f"min_boxes {min_boxes} and max_boxes {max_boxes}: need 0 <= min_boxes <= max_boxes")
    count = len(boxes)
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    confidences = _confidences(
        _overlaps(boxes, nms_threshold, convention), class_probs, min(min_boxes, count), score_threshold, convention
    )
    confident = torch.nonzero(confidences.double() >= score_threshold).flatten()
    if min_boxes <= len(confident) <= max_boxes:
        return confident
    best_first = _descending(confidences, convention)
    return best_first[: min_boxes if len(confident) < min_boxes else max_boxes]


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
    boxes = _boxes_of_best_class(predictions) if regressed else predictions.proposals
    keep = select_regions(
        boxes,
        predictions.class_probs,
        min_boxes=min_boxes,
        max_boxes=max_boxes,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        convention=convention,
    )
    return _regions(predictions, image_id, boxes, keep)


def regions_of_given(predictions: RegionPredictions, image_id: int | str) -> Regions:
    """Returns all regions in their order, for boxes that the caller gave the detector, with labels as in
    ``regions_from``."""
    return _regions(predictions, image_id, predictions.proposals, slice(None))


def _regions(
    predictions: RegionPredictions, image_id: int | str, boxes: torch.Tensor, keep: torch.Tensor | slice
) -> Regions:
    object_ids, object_scores = _best(predictions.class_probs[keep])
    attribute_ids, attribute_scores = None, None
    if predictions.attribute_probs is not None:
        attribute_ids, attribute_scores = _best(predictions.attribute_probs[keep])
    return Regions(
        image_id=image_id,
        width=predictions.width,
        height=predictions.height,
        boxes=boxes[keep].float().cpu().numpy(),
        features=predictions.features[keep].float().cpu().numpy(),
        object_ids=object_ids,
        object_scores=object_scores,
        attribute_ids=attribute_ids,
        attribute_scores=attribute_scores,
    )


def _boxes_of_best_class(predictions: RegionPredictions) -> torch.Tensor:
    """Returns the box of each region regressed for its most probable class, [R, 4]."""
    assert predictions.boxes is not None
    best = predictions.class_probs.argmax(dim=1)
    return predictions.boxes[torch.arange(len(best), device=best.device), best]


def _best(probs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first best class [n] int64 of probabilities [n, C], and its probability [n] float32."""
    array = probs.float().cpu().numpy()
    return array.argmax(axis=1), array.max(axis=1)


def _overlaps(boxes: torch.Tensor, threshold: float, convention: str) -> torch.Tensor:
    """Returns which regions suppress each other, [R, R] bool."""
    # IoUs are compared in double precision, as in the original and in torchvision: 0.3 rounded to single exceeds 0.3.
    iou = pairwise_iou(boxes, boxes, convention).double()
    overlaps = iou >= threshold if convention == "caffe" else iou > threshold
    return overlaps.fill_diagonal_(False)


def _confidences(
    overlaps: torch.Tensor, probs: torch.Tensor, needed: int, score_threshold: float, convention: str
) -> torch.Tensor:
    """Returns the confidences [R]. They are exact where they are at least ``score_threshold`` and for the ``needed``
    best regions; elsewhere they may be too low.

    Whether a (region, class) pair survives depends only on the pairs of the same class with a higher probability.
    Therefore the pairs with a probability of at least ``floor`` determine every confidence that reaches ``floor``.
    After a softmax they are few (at most 1 / floor per region). The floor is lowered until enough confidences reach it.
    """
    classes = probs.shape[1]
    floor = score_threshold
    if needed > 0:
        floor = min(floor, probs.amax(dim=1).topk(needed).values[-1].item())
    while True:
        confidences = _confidences_above(floor, overlaps, probs, convention)
        if floor <= 0 or int((confidences >= floor).sum()) >= needed:
            return confidences
        # Below 1 / classes nearly all pairs are included, and a floor below 0 would not add any.
        floor = floor / 4 if floor > 1 / classes else 0.0


def _confidences_above(floor: float, overlaps: torch.Tensor, probs: torch.Tensor, convention: str) -> torch.Tensor:
    """Returns the confidences [R] that follow from the (region, class) pairs with a probability of at least ``floor``
    and above 0.

    Suppression runs for all classes at once: first for the best pair of every class, then for the second best, and so
    on.
    """
    regions, classes = torch.nonzero(probs >= floor if floor > 0 else probs > 0, as_tuple=True)
    scores = probs[regions, classes]
    order = _descending(scores, convention)
    order = order[torch.argsort(classes[order], stable=True)]
    counts = torch.bincount(classes, minlength=probs.shape[1])
    rank_in_class = torch.arange(len(order), device=probs.device) - (counts.cumsum(0) - counts)[classes[order]]
    order = order[torch.argsort(rank_in_class, stable=True)]
    regions, classes, scores = regions[order], classes[order], scores[order]
    pairs_of_rank = torch.bincount(rank_in_class).tolist()

    suppressed = torch.zeros(probs.shape[1], probs.shape[0], dtype=torch.bool, device=probs.device)
    for region, class_ in zip(torch.split(regions, pairs_of_rank), torch.split(classes, pairs_of_rank)):
        survives = ~suppressed[class_, region]
        region, class_ = region[survives], class_[survives]
        suppressed[class_] |= overlaps[region]
    # A survivor is never suppressed later: a region that overlaps it is suppressed by it, and suppresses nothing.
    survives = ~suppressed[classes, regions]
    confidences = torch.zeros_like(probs[:, 0])
    return confidences.scatter_reduce_(0, regions[survives], scores[survives], "amax")


def _descending(scores: torch.Tensor, convention: str) -> torch.Tensor:
    """Returns the indices of ``scores`` [N], best first, with ties in the convention's order, provided that the scores
    are in ascending order of their regions."""
    if convention == "caffe":
        return torch.argsort(scores, stable=True).flip(0)
    return torch.argsort(scores, descending=True, stable=True)
