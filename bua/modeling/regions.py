"""An image's regions, between the pixels that the network sees and those of the original image."""

from typing import NamedTuple

import torch
from torch import Tensor

from bua.modeling.boxes import clip_boxes, decode_boxes
from bua.structures import DetectorInput, RegionPredictions


class RegionBoxes(NamedTuple):
    """The regions of one image that the heads are to describe.

    Attributes:
        network: [R, 4] x1y1x2y2 in network pixels.
        original: [R, 4] the same in pixels of the original image.
        objectness: [R] 0 to 1.
    """

    network: Tensor
    original: Tensor
    objectness: Tensor


class RegionOutputs(NamedTuple):
    """What the heads say about R regions.

    Attributes:
        features: [R, D] float32.
        class_probs: [R, C + 1] float32, background last.
        deltas: [R, C * 4] float32, or None where they were not asked for.
        attribute_probs: [R, A] float32, or None without an attribute head.
    """

    features: Tensor
    class_probs: Tensor
    deltas: Tensor | None
    attribute_probs: Tensor | None

    def split(self, counts: list[int]) -> list["RegionOutputs"]:
        """Those of each image, when the regions of several follow each other."""
        parts = [[None] * len(counts) if values is None else values.split(counts) for values in self]
        return [RegionOutputs(*values) for values in zip(*parts)]


def proposed_regions(image: DetectorInput, boxes: Tensor, objectness: Tensor) -> RegionBoxes:
    """Proposals [R, 4] in network pixels, with the logits [R] of their objectness."""
    return RegionBoxes(boxes, boxes / _scale(image, boxes), objectness.sigmoid())


def given_regions(image: DetectorInput, boxes: Tensor) -> RegionBoxes:
    """Boxes [R, 4] in pixels of the original image; they are taken for objects."""
    boxes = boxes.to(torch.float32).reshape(-1, 4)
    return RegionBoxes(boxes * _scale(image, boxes), boxes, torch.ones_like(boxes[:, 0]))


def region_predictions(
    image: DetectorInput, regions: RegionBoxes, outputs: RegionOutputs, box_weights, convention: str
) -> RegionPredictions:
    """Puts together what is known of one image's regions.

    Args:
        box_weights: of the deltas, as ``decode_boxes`` takes them.
    """
    boxes = None
    if outputs.deltas is not None:
        boxes = _regressed_boxes(image, regions, outputs.deltas, box_weights, convention)
    return RegionPredictions(
        width=image.width,
        height=image.height,
        proposals=regions.original,
        objectness=regions.objectness,
        class_probs=outputs.class_probs[:, :-1],
        boxes=boxes,
        features=outputs.features,
        attribute_probs=outputs.attribute_probs,
    )


def _regressed_boxes(picture, regions, deltas, box_weights, convention) -> Tensor:
    """[R, C, 4], regressed and clipped in the original image (lib/fast_rcnn/test.py), or, in the "detectron2"
    convention, in network pixels and then once more in the original image."""
    if convention == "caffe":
        boxes = decode_boxes(regions.original, deltas, box_weights, convention).unflatten(1, (-1, 4))
    else:
        height, width = picture.image.shape[-2:]
        boxes = decode_boxes(regions.network, deltas, box_weights, convention).unflatten(1, (-1, 4))
        boxes = clip_boxes(boxes, height, width, convention) / _scale(picture, boxes)
    return clip_boxes(boxes, picture.height, picture.width, convention)


def _scale(image: DetectorInput, boxes: Tensor) -> Tensor:
    x, y = image.scale
    return torch.tensor([x, y, x, y], dtype=torch.float32, device=boxes.device)
