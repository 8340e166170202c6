"""Boxes in the two conventions: coding, clipping, overlap, suppression.

Boxes are x1y1x2y2 in pixels. "caffe" is the convention of py-faster-rcnn and therefore of the original
(lib/fast_rcnn/bbox_transform.py, lib/utils/bbox.pyx, lib/nms/cpu_nms.pyx): the pixels x1 and x2 both belong to the
box, so that its width is x2 - x1 + 1, and a box is suppressed if its overlap reaches the threshold. "detectron2"
measures between the edges of pixels, and suppresses if the overlap is above the threshold.
"""

import math
from collections.abc import Sequence

import numpy as np
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
    return deltas * constant_row(weights, deltas)


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
    deltas = deltas.unflatten(1, (-1, 4))
    if any(weight != 1 for weight in weights):
        deltas = deltas / constant_row(weights, deltas)
    dx, dy, dw, dh = deltas.unbind(-1)
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
    """Returns the intersection over union [..., N, M] of boxes a [..., N, 4] and b [..., M, 4]; 0 where the union is
    empty."""
    offset = 1 if convention == "caffe" else 0
    a, b = a[..., :, None, :], b[..., None, :, :]
    extent = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset
    width, height = extent.clamp(min=0).unbind(-1)
    intersection = width * height
    union = torch.mul(*box_sizes(a, convention)) + torch.mul(*box_sizes(b, convention)) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, convention: str = "caffe") -> Tensor:
    """Returns the indices of the boxes that remain after greedy non-maximum suppression.

    Of boxes with equal scores, the one with the lower index comes first. A CPU and a GPU compare with the same
    threshold; only an IoU that they round differently can make their results differ.

    Args:
        boxes: [N, 4] float32.
        scores: [N].

    Returns:
        int64 indices of the remaining boxes, best first.
    """
    if convention == "caffe":
        # With one more pixel, torchvision's areas are those of the convention.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)
    return torchvision.ops.nms(boxes, scores, threshold_above(iou_threshold, convention))


def threshold_above(iou_threshold: float, convention: str) -> float:
    """Returns the threshold that a float32 IoU is above exactly if it suppresses a box: in "caffe" if it is at least
    ``iou_threshold``, in "detectron2" if it is above it.

    ``iou_threshold`` counts in double precision, as in the original, where 0.3 is below the float32 nearest to it. The
    result is a float32 too, because torchvision compares in double precision on a CPU and in single precision on a
    GPU.
    """
    nearest = np.float32(iou_threshold)
    if float(nearest) < iou_threshold or (convention == "detectron2" and float(nearest) == iou_threshold):
        return float(nearest)
    return float(np.nextafter(nearest, np.float32(-np.inf)))


def constant_row(values: Sequence[float], like: Tensor) -> Tensor:
    """Returns numbers as a tensor with the dtype and the device of ``like``.

    It is filled on the device. ``torch.tensor`` and ``new_tensor`` would copy it there and wait for the copy. A number
    as an operand of its own would be exact on a CPU only: on a GPU, torch divides by multiplying with the reciprocal.
    """
    row = like.new_empty(len(values))
    for i, value in enumerate(values):
        row[i].fill_(value)
    return row


def _centre_and_size(boxes: Tensor, convention: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = box_sizes(boxes, convention)
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height
