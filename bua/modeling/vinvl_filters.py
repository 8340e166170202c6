"""How VinVL's detector turns the probabilities of its proposals into detections and attributes.

Source: microsoft/scene_graph_benchmark, maskrcnn_benchmark/modeling/roi_heads/box_head/inference.py and
scene_graph_benchmark/attribute_head/inference.py. All functions take tensors on the CPU: the work is many short steps,
for each of which a GPU would be waited for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bua.modeling.boxes import nms

# The values of MODEL.ROI_HEADS.NMS_FILTER.
FILTERS = (0, 1, 2)
# How often the threshold is halved while there are too few detections.
TRIES = 10


class Chosen(NamedTuple):
    """The detections of one image.

    Attributes:
        regions: [n] int64 rows of the proposals.
        classes: [n] int64, from 0.
        scores: [n] float32, the probabilities of these classes.
    """

    regions: Tensor
    classes: Tensor
    scores: Tensor


def choose_detections(
    boxes: Tensor,
    probs: Tensor,
    nms_filter: int,
    *,
    min_detections: int = 10,
    max_detections: int = 100,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.3,
) -> Chosen:
    """Returns the detections of one image.

    - Filter 0: for each class the regions with a probability above ``score_threshold``, after suppression, class by
      class. If they are more than ``max_detections``, those of the highest probabilities are kept, in the same order.
      If they are fewer than ``min_detections``, the threshold is halved, ten times at most. A region may be detected as
      several classes.
    - Filter 1: suppression in each class among all regions. A region's class is the most probable one in which it is
      not suppressed. The regions of which this probability is at least ``score_threshold`` are detected, but no fewer
      than ``min_detections`` and no more than ``max_detections``, the most probable ones first. (The original halves
      the threshold here too, without an effect.)
    - Filter 2: a region's class is the most probable one. Suppression is independent of the class, among the regions
      of which the probability exceeds a hundredth of ``score_threshold``. The rest is as in filter 1.

    Args:
        boxes: [R, 4] float32 in network pixels, or [R, C, 4] if they differ between the classes, which filter 2 does
            not take.
        probs: [R, C] float32, without background.
        nms_filter: One of ``FILTERS``.
        min_detections, max_detections: Limits on the number of detections.
        score_threshold: A probability.
        nms_threshold: IoU, of widths x2-x1, above which the less probable region is suppressed.
    """
    if nms_filter == 0:
        for halvings in range(TRIES + 1):
            chosen = _filter_0(boxes, probs, max_detections, score_threshold / 2**halvings, nms_threshold)
            if len(chosen.regions) >= min_detections:
                break
        return chosen
    if nms_filter == 1:
        scores, classes = _best_surviving(boxes, probs, min_detections, score_threshold, nms_threshold)
        candidates = scores.nonzero().squeeze(1)
    else:
        scores, classes = probs.max(dim=1)
        sizes = boxes[:, 2:] - boxes[:, :2]
        candidates = ((sizes >= 0).all(dim=1) & (scores > score_threshold * 0.01)).nonzero().squeeze(1)
        candidates = candidates[nms(boxes[candidates], scores[candidates], nms_threshold, "detectron2")]
    number = int((scores[candidates] >= score_threshold).sum())
    order = scores[candidates].sort(descending=True, stable=True).indices
    regions = candidates[order[: min(max(number, min_detections), max_detections)]]
    return Chosen(regions, classes[regions], scores[regions])


def choose_attributes(
    probs: Tensor, threshold: float = 0.05, max_per_object: int = 16, max_per_image: int = 100
) -> tuple[Tensor, Tensor]:
    """Returns the most probable attributes of each detection of an image, the most probable ones first.

    Args:
        probs: [n, A] float32, the softmax over A + 1 attributes without the column of "no attribute". The others are
            not normalised again.
        threshold: Probabilities that do not exceed it become 0.
        max_per_object: Number of attributes of each detection, of which some may have the probability 0.
        max_per_image: Meant as the largest number of attributes of an image. It has no effect as long as most
            probabilities are below the threshold, since the original also counts those as values among which it looks
            for the one at this rank.

    Returns:
        [n, k] int64 attributes, from 0, and [n, k] float32 probabilities, for the smaller ``k`` of ``max_per_object``
        and A.
    """
    kept = probs.masked_fill(probs <= threshold, 0.0)
    number = int(kept.count_nonzero())
    if number > max_per_image > 0:
        table = F.pad(kept, (0, 1)).flatten()  # the original's has "no attribute", with 0
        smallest = table.kthvalue(number - max_per_image + 1).values
        kept = kept.masked_fill(kept < smallest, 0.0)
    attributes = probs.topk(min(max_per_object, probs.shape[1]), dim=1).indices
    return attributes, kept.gather(1, attributes)


def _filter_0(
    boxes: Tensor, probs: Tensor, max_detections: int, score_threshold: float, nms_threshold: float
) -> Chosen:
    none = torch.zeros(0, dtype=torch.int64)
    survivors = list(_survivors(boxes, probs, probs > score_threshold, nms_threshold))
    regions = torch.cat([none, *(rows for _, rows in survivors)])
    classes = torch.cat([none, *(torch.full_like(rows, number) for number, rows in survivors)])
    scores = probs[regions, classes]
    if len(scores) > max_detections:
        # Those that equal the last one are kept too.
        kept = scores >= scores.kthvalue(len(scores) - max_detections + 1).values
        regions, classes, scores = regions[kept], classes[kept], scores[kept]
    return Chosen(regions, classes, scores)


def _best_surviving(
    boxes: Tensor, probs: Tensor, needed: int, score_threshold: float, nms_threshold: float
) -> tuple[Tensor, Tensor]:
    """Returns the highest probability [R] of each region in a class in which it is not suppressed, and the class [R].
    They are exact where the probability is at least ``score_threshold``, and for the ``needed`` best regions; elsewhere
    the probability may be too low.

    What a region is suppressed by has a higher probability in the same class. Therefore the pairs of a region and a
    class with a probability of at least ``floor`` are enough for all results that reach ``floor``, and few of the
    R times 1594 pairs do.
    """
    floor = score_threshold
    while True:
        candidates = probs >= floor if floor > 0 else probs > 0
        surviving = torch.zeros_like(probs)
        for number, rows in _survivors(boxes, probs, candidates, nms_threshold):
            surviving[rows, number] = probs[rows, number]
        scores, classes = surviving.max(dim=1)
        if floor == 0 or int((scores >= floor).sum()) >= min(needed, len(probs)):
            return scores, classes
        floor = floor / 4 if floor > 1 / probs.shape[1] else 0.0


def _survivors(boxes: Tensor, probs: Tensor, candidates: Tensor, nms_threshold: float) -> Iterator[tuple[int, Tensor]]:
    """Yields each class with candidates [R, C] bool, and the regions [n] that remain after suppression among these, the
    most probable ones first."""
    classes, regions = candidates.T.nonzero().unbind(1)
    numbers, counts = classes.unique_consecutive(return_counts=True)
    for number, rows in zip(numbers.tolist(), regions.split(counts.tolist())):
        of_class = boxes[rows] if boxes.dim() == 2 else boxes[rows, number]
        yield number, rows[nms(of_class, probs[rows, number], nms_threshold, "detectron2")]
