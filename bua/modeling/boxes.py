"""Boxes in the two conventions: coding, clipping, overlap, suppression.

Boxes are x1y1x2y2 in pixels. "caffe" is the convention of py-faster-rcnn and therefore of the original
(lib/fast_rcnn/bbox_transform.py, lib/utils/bbox.pyx, lib/nms/cpu_nms.pyx): the pixels x1 and x2 both belong to the
box, so that its width is x2 - x1 + 1, and a box is suppressed if its overlap reaches the threshold. "detectron2"
measures between the edges of pixels, and suppresses if the overlap is above the threshold.
"""

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

# Detectron2 limits by how much a delta may enlarge a box; the original does not.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode_boxes(
    reference: Tensor, target: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), convention: str = "caffe"
) -> Tensor:
    """Returns the deltas (dx, dy, dw, dh), times ``weights``, that turn each reference box into its target.

    Args:
        reference, target: [N, 4].

    Returns:
        [N, 4], with the dtype of ``reference``.
    """
    x, y, width, height = _centre_and_size(reference, convention)
    target_x, target_y, target_width, target_height = _centre_and_size(target, convention)
    deltas = torch.stack(
        [
            (target_x - x) / width,
            (target_y - y) / height,
            torch.log(target_width / width),
            torch.log(target_height / height),
        ],
        dim=-1,
    )
    return deltas * deltas.new_tensor(weights)


def decode_boxes(
    reference: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), convention: str = "caffe"
) -> Tensor:
    """Returns the boxes that result from applying deltas to reference boxes.

    In the "caffe" convention x2 is the centre plus half the width, as in the original, so that deltas of zero return
    x2 + 1. The released weights were trained in this way.

    Args:
        reference: [N, 4].
        deltas: [N, 4 * K], for K boxes per reference box.

    Returns:
        [N, 4 * K].
    """
    x, y, width, height = (value[:, None] for value in _centre_and_size(reference, convention))
    dx, dy, dw, dh = (deltas.unflatten(1, (-1, 4)) / deltas.new_tensor(weights)).unbind(-1)
    if convention == "detectron2":
        dw, dh = dw.clamp(max=MAX_LOG_SCALE), dh.clamp(max=MAX_LOG_SCALE)
    centre_x, centre_y = dx * width + x, dy * height + y
    half_width, half_height = 0.5 * torch.exp(dw) * width, 0.5 * torch.exp(dh) * height
    boxes = [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height]
    return torch.stack(boxes, dim=-1).flatten(1)


def clip_boxes(boxes: Tensor, height: float, width: float, convention: str = "caffe") -> Tensor:
    """Returns boxes [..., 4] limited to an image: to its last pixel in "caffe", to its edge in "detectron2"."""
    margin = 1 if convention == "caffe" else 0
    x1, y1, x2, y2 = boxes.unbind(-1)
    right, bottom = width - margin, height - margin
    return torch.stack(
        [x1.clamp(0, right), y1.clamp(0, bottom), x2.clamp(0, right), y2.clamp(0, bottom)],
        dim=-1,
    )


def box_sizes(boxes: Tensor, convention: str = "caffe") -> tuple[Tensor, Tensor]:
    """Returns the widths and heights [...] of boxes [..., 4]."""
    offset = 1 if convention == "caffe" else 0
    return boxes[..., 2] - boxes[..., 0] + offset, boxes[..., 3] - boxes[..., 1] + offset


def pairwise_iou(a: Tensor, b: Tensor, convention: str = "caffe") -> Tensor:
    """Returns the intersection over union [N, M] of boxes a [N, 4] and b [M, 4]; 0 where the union is empty."""
    offset = 1 if convention == "caffe" else 0
    extent = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2]) + offset
    intersection = extent.clamp(min=0).prod(-1)
    area_a = torch.mul(*box_sizes(a, convention))
    area_b = torch.mul(*box_sizes(b, convention))
    union = area_a[:, None] + area_b[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, convention: str = "caffe") -> Tensor:
    """Returns the indices of the boxes that remain after greedy non-maximum suppression.

    Of boxes with equal scores, the one with the lower index comes first.

    Args:
        boxes: [N, 4].
        scores: [N].

    Returns:
        int64 indices of the remaining boxes, best first.
    """
    if convention == "caffe":
        # With one more pixel, torchvision's areas are those of the convention. With the next smaller threshold, its ">"
        # is the original's ">=".
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        iou_threshold = math.nextafter(iou_threshold, -math.inf)
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def _centre_and_size(boxes: Tensor, convention: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = box_sizes(boxes, convention)
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height
