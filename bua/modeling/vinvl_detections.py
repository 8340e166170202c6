"""The detections of VinVL's detector, and their form for extraction."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bua.structures import DetectorInput, Regions

# Number of numbers that say where a region is, as Oscar reads them.
PLACE_NUMBERS = 6


@dataclass
class Detections:
    """The detections of one image, on the detector's device, apart from the attributes, which are on the host.

    Attributes:
        regions: [n] int64, which proposals they are.
        network: [n, 4] float32 x1y1x2y2 in network pixels.
        boxes: [n, 4] float32 x1y1x2y2 in pixels of the original image.
        features: [n, D] float32, >= 0, those of the proposals.
        classes: [n] int64, from 0.
        scores: [n] float32.
        attributes: [n, k] int64, from 0, the most probable ones first; None for a detector without attributes.
        attribute_scores: [n, k] float32: their probabilities, or 0 if these do not exceed the threshold.
    """

    regions: Tensor
    network: Tensor
    boxes: Tensor
    features: Tensor
    classes: Tensor
    scores: Tensor
    attributes: Tensor | None
    attribute_scores: Tensor | None


def regions_of(inputs: DetectorInput, found: Detections, spatial_features: bool = False) -> Regions:
    """Returns detections as regions, with the most probable attribute of each, whose score is 0 if it does not exceed
    the threshold.

    Args:
        spatial_features: Whether x1/W, y1/H, x2/W, y2/H, (x2-x1)/W and (y2-y1)/H are appended to each feature, as Oscar
            reads them. The formula is that of users who rebuilt Oscar's files: its authors published none.
    """
    boxes, features = found.boxes.cpu().numpy(), found.features.cpu().numpy()
    if spatial_features:
        corners = boxes / np.array([inputs.width, inputs.height] * 2, np.float32)
        features = np.hstack([features, corners, corners[:, 2:] - corners[:, :2]])
    regions = Regions(
        image_id=0 if inputs.image_id is None else inputs.image_id,
        width=inputs.width,
        height=inputs.height,
        boxes=boxes,
        features=features,
        object_ids=found.classes.cpu().numpy(),
        object_scores=found.scores.cpu().numpy(),
    )
    if found.attributes is not None and found.attribute_scores is not None:
        regions.attribute_ids = found.attributes[:, 0].cpu().numpy()
        regions.attribute_scores = found.attribute_scores[:, 0].cpu().numpy()
    return regions
