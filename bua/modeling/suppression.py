"""Non-maximum suppression of several images at once, by operators that never wait for a GPU.

torchvision's operator waits for the GPU once an image, because the size of its result depends on values. It takes
several images at once only as one image with boxes far apart, whose pairs of boxes it compares as well: for 8 images of
12,000 boxes these are eight times the work and 1.2 GB of memory, which a single thread block reads at the end.
"""

import torch
from torch import Tensor

from bua.modeling.boxes import nms, threshold_above

ROUNDS = 32
# Number of pairs of boxes that are compared at a time, over all images, which limits the memory: 256 MB in float32.
_PAIRS = 2**26
_LARGEST_BLOCK = 1024


def suppress(
    boxes: Tensor, valid: Tensor, iou_threshold: float, convention: str = "caffe", *, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Finds the boxes that remain after greedy non-maximum suppression in each image, as ``bua.modeling.boxes.nms``
    does in one image.

    On a GPU the boxes are taken in blocks. Within a block, whether a box remains is computed for all boxes at once,
    from the last guess of which better boxes remain, beginning with all of them. Each round makes the guess right for
    one more link of the longest chain of boxes that suppress each other. Eight to sixteen rounds are enough for the
    proposals of most images.

    Args:
        boxes: [B, N, 4] float32, best first.
        valid: [B, N] bool. The others neither remain nor suppress.
        iou_threshold: As for ``nms``.
        convention: "caffe" or "detectron2".
        rounds: Number of rounds for each block.

    Returns:
        [B, N] bool, whether each box remains, and a bool tensor [] that says whether ``rounds`` was enough. If it is
        False, call this function with more rounds.
    """
    if boxes.device.type == "cpu":
        return _suppress_image_by_image(boxes, valid, iou_threshold, convention), torch.ones((), dtype=torch.bool)
    with torch.autocast(boxes.device.type, enabled=False):  # it would convert the matrices again in each round
        return _suppress_in_blocks(boxes, valid, iou_threshold, convention, rounds)


def _suppress_image_by_image(boxes: Tensor, valid: Tensor, iou_threshold: float, convention: str) -> Tensor:
    remains = torch.zeros_like(valid)
    for image_remains, image_boxes, image_valid in zip(remains, boxes, valid):
        rows = torch.nonzero(image_valid).squeeze(1)
        best_first = torch.arange(len(rows), 0, -1, device=boxes.device).to(boxes.dtype)
        image_remains[rows[nms(image_boxes[rows], best_first, iou_threshold, convention)]] = True
    return remains


def _suppress_in_blocks(
    boxes: Tensor, valid: Tensor, iou_threshold: float, convention: str, rounds: int
) -> tuple[Tensor, Tensor]:
    images, number = valid.shape
    size = max(64, min(_LARGEST_BLOCK, _PAIRS // max(1, images * number)))
    overlaps = _Overlaps(boxes, iou_threshold, convention)
    remains, settled = valid.half(), torch.ones((), dtype=torch.bool, device=boxes.device)
    for start in range(0, number, size):
        end = min(start + size, number)
        # Half precision is exact here: only whether a sum of zeros and ones is zero matters.
        pairs = overlaps(start, end).half()
        within, after = pairs[:, :, : end - start].triu(1), pairs[:, :, end - start :]
        candidates = remains[:, None, start:end]
        guess, last = candidates, candidates
        for _ in range(min(rounds, end - start)):
            guess, last = _without(candidates, guess, within), guess
        if rounds < end - start:
            settled = settled & (guess == last).all()
        rest = _without(remains[:, None, end:], guess, after)
        remains = torch.cat([remains[:, :start], guess[:, 0], rest[:, 0]], dim=1)
    return remains > 0, settled


def _without(candidates: Tensor, better: Tensor, pairs: Tensor) -> Tensor:
    """Returns [B, 1, M] 0 or 1: the ``candidates`` [B, 1, M] that are in no pair with any of the ``better`` boxes
    [B, 1, K], for pairs [B, K, M]."""
    return torch.baddbmm(candidates, better, pairs, alpha=-1).clamp_(min=0)


class _Overlaps:
    """Says which boxes overlap by more than the threshold, with torchvision's arithmetic on the CPU."""

    def __init__(self, boxes: Tensor, iou_threshold: float, convention: str):
        self.x1, self.y1, self.x2, self.y2 = boxes.unbind(-1)
        if convention == "caffe":
            # As in ``bua.modeling.boxes.nms``.
            self.x2, self.y2 = self.x2 + 1, self.y2 + 1
        self.areas = (self.x2 - self.x1) * (self.y2 - self.y1)
        self.threshold = threshold_above(iou_threshold, convention)

    def __call__(self, start: int, end: int) -> Tensor:
        """Returns [B, end - start, N - start] bool for the pairs of boxes from ``start`` to ``end`` with these and all
        that follow."""
        width = self._extent(self.x1, self.x2, start, end)
        intersection = width.mul_(self._extent(self.y1, self.y2, start, end))
        union = (self.areas[:, start:end, None] + self.areas[:, None, start:]).sub_(intersection)
        return intersection.div_(union) > self.threshold

    @staticmethod
    def _extent(low: Tensor, high: Tensor, start: int, end: int) -> Tensor:
        extent = torch.minimum(high[:, start:end, None], high[:, None, start:])
        return extent.sub_(torch.maximum(low[:, start:end, None], low[:, None, start:])).clamp_(min=0)
