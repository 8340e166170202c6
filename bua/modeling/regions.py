"""The regions of an image, converted between network pixels and pixels of the original image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bua.modeling.boxes import clip_boxes, constant_row, decode_boxes
from bua.structures import DetectorInput, RegionPredictions


class RegionBoxes(NamedTuple):
    """The regions of one image that the ROI heads describe.

    Attributes:
        network: [R, 4] x1y1x2y2 in network pixels.
        original: [R, 4] x1y1x2y2 in pixels of the original image.
        objectness: [R] 0 to 1.
    """

    network: Tensor
    original: Tensor
    objectness: Tensor


class RegionOutputs(NamedTuple):
    """The outputs of the ROI heads for R regions.

    Attributes:
        features: [R, D] float32.
        class_probs: [R, C + 1] float32, background last.
        deltas: [R, C * 4] float32, or None if they were not asked for.
        attribute_probs: [R, A] float32, or None without an attribute head.
    """

    features: Tensor
    class_probs: Tensor
    deltas: Tensor | None
    attribute_probs: Tensor | None

    def split(self, counts: list[int]) -> list["RegionOutputs"]:
        """Returns the outputs of each image, where the regions of several images follow each other.

        Args:
            counts: Number of regions of each image.
        """
        parts = [[None] * len(counts) if values is None else values.split(counts) for values in self]
        return [RegionOutputs(*values) for values in zip(*parts)]


def proposed_regions(inputs: DetectorInput, boxes: Tensor, objectness: Tensor) -> RegionBoxes:
    """Returns the regions of proposals [R, 4] in network pixels, with the logits [R] of their objectness."""
    return RegionBoxes(boxes, boxes / scale_of(inputs, boxes), objectness.sigmoid())


def given_regions(inputs: DetectorInput, boxes: Tensor) -> RegionBoxes:
    """Returns the regions of boxes [R, 4] in pixels of the original image, with an objectness of 1."""
    boxes = boxes.to(torch.float32).reshape(-1, 4)
    return RegionBoxes(boxes * scale_of(inputs, boxes), boxes, torch.ones_like(boxes[:, 0]))


def scale_of(inputs: DetectorInput, like: Tensor) -> Tensor:
    """Returns the scale [4] of coordinates x1y1x2y2, network pixels per original pixel, with the dtype and the device
    of ``like``."""
    return constant_row([*inputs.scale, *inputs.scale], like)


def region_predictions(
    inputs: DetectorInput, regions: RegionBoxes, outputs: RegionOutputs, box_weights: Sequence[float], convention: str
) -> RegionPredictions:
    """Returns the predictions for the regions of one image.

    Args:
        box_weights: Weights of the deltas, as ``decode_boxes`` takes them.
    """
    boxes = None
    if outputs.deltas is not None:
        boxes = _regressed_boxes(inputs, regions, outputs.deltas, box_weights, convention)
    return RegionPredictions(
        width=inputs.width,
        height=inputs.height,
        proposals=regions.original,
        objectness=regions.objectness,
        class_probs=outputs.class_probs[:, :-1],
        boxes=boxes,
        features=outputs.features,
        attribute_probs=outputs.attribute_probs,
    )


def _regressed_boxes(
    inputs: DetectorInput, regions: RegionBoxes, deltas: Tensor, box_weights: Sequence[float], convention: str
) -> Tensor:
    """Returns the boxes [R, C, 4] regressed and clipped in the original image (lib/fast_rcnn/test.py). In the
    "detectron2" convention they are regressed and clipped in network pixels, and then clipped again in the original
    image."""
    if convention == "caffe":
        boxes = decode_boxes(regions.original, deltas, box_weights, convention).unflatten(1, (-1, 4))
    else:
        height, width = inputs.image.shape[-2:]
        boxes = decode_boxes(regions.network, deltas, box_weights, convention).unflatten(1, (-1, 4))
        boxes = clip_boxes(boxes, height, width, convention) / scale_of(inputs, boxes)
    return clip_boxes(boxes, inputs.height, inputs.width, convention)
