"""Resizing, box coding and proposals as in VinVL's detector, which is built on maskrcnn-benchmark.

Its boxes lie between the two conventions of ``bua.modeling.boxes``. As in "caffe", a box is x2-x1+1 wide where boxes
are coded, anchors are rounded and ordered by ratio, and boxes are clipped to W-1. As in "detectron2", the best boxes
are taken before small ones would be dropped, a delta may enlarge a box by a limited factor only, and a box is
suppressed above the threshold, with widths x2-x1. Unlike both, deltas of zero return the box itself although it is
x2-x1+1 wide.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bua.errors import InputError
from bua.io.images import MIN_NETWORK_SIDE, Resize
from bua.modeling.boxes import MAX_LOG_SCALE, clip_boxes, constant_row, decode_boxes
from bua.modeling.rpn import suppress_candidates
from bua.structures import DetectorInput


def decode(reference: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Returns the boxes [N, 4 * K] that result from applying deltas [N, 4 * K] to reference boxes [N, 4].

    Source: maskrcnn_benchmark/modeling/box_coder.py.

    Args:
        weights: Numbers that the deltas are divided by.
    """
    per_box = deltas.unflatten(1, (-1, 4))
    if any(weight != 1 for weight in weights):
        per_box = per_box / constant_row(weights, deltas)
    limited = torch.cat([per_box[..., :2], per_box[..., 2:].clamp(max=MAX_LOG_SCALE)], dim=-1)
    boxes = decode_boxes(reference, limited.flatten(1)).unflatten(1, (-1, 4))
    return (boxes - constant_row((0, 0, 1, 1), boxes)).flatten(1)


def propose(
    anchors: Tensor,
    objectness: Tensor,
    deltas: Tensor,
    height: int,
    width: int,
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Returns the proposals of one image, best first. It waits for a GPU.

    There is no smallest size: with a width of x2-x1+1, no decoded box is narrower than 0.

    Args:
        anchors: [N, 4] in network pixels.
        objectness: [N] logits.
        deltas: [N, 4].
        height, width: Size of the image in network pixels.
        pre_nms_topk, post_nms_topk: Number of boxes kept before and after suppression.
        nms_threshold: IoU above which a box is suppressed.

    Returns:
        Boxes [R, 4] in network pixels, and their objectness [R], 0 to 1.
    """
    # The original sorts the probabilities, among which more are tied than among the logits.
    scores, order = objectness.sigmoid().sort(descending=True, stable=True)
    best = order[:pre_nms_topk]
    boxes = clip_boxes(decode(anchors[best], deltas[best]), height, width)
    (proposals,) = suppress_candidates([(boxes, scores[:pre_nms_topk])], post_nms_topk, nms_threshold, "detectron2")
    return proposals


def resized_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Returns the height and width in network pixels of an image.

    The short side becomes ``short``, or less if the long side would exceed ``long``, and the long side is rounded down
    (maskrcnn_benchmark/data/transforms/transforms.py).
    """
    small, large = min(height, width), max(height, width)
    if large / small * short > long:
        short = round(long * small / large)
    if small == short:
        return height, width
    if width < height:
        return int(short * height / width), short
    return short, int(short * width / height)


class VinVLResize(Resize):
    """Converts images to the input of VinVL's detector: PIL's bilinear filter, which smooths where it makes an image
    smaller, and ``resized_size``."""

    def __init__(self, short: int, long: int):
        super().__init__(short, long, "vinvl")

    def __call__(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to a DetectorInput without ground truth.

        Raises:
            InputError: The image is so narrow that one side would have less than ``MIN_NETWORK_SIDE`` pixels.
        """
        height, width = image.shape[:2]
        new_height, new_width = resized_size(height, width, self.short, self.long)
        if min(new_height, new_width) < MIN_NETWORK_SIDE:
            raise InputError(
                f"an image of {width}x{height} pixels would be resized to {new_width}x{new_height}, and the network "
                f"needs {MIN_NETWORK_SIDE} pixels on each side; crop it"
            )
        if (new_height, new_width) != (height, width):
            resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        return DetectorInput(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)),
            width=width,
            height=height,
            scale=(new_width / width, new_height / height),
            image_id=image_id,
        )
