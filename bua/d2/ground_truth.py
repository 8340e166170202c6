"""The ground truth in Detectron2's instances, in bua's form."""

import torch
from detectron2.structures import Instances
from torch import Tensor

from bua.modeling.ground_truth import GroundTruth, batch_ground_truth


def ground_truth_of(targets: list[Instances]) -> GroundTruth:
    """Returns the ground truth of several images, on the device of their ``gt_boxes``."""
    images = [(target.gt_boxes.tensor, target.gt_classes, gt_attributes(target)) for target in targets]
    return batch_ground_truth(images, images[0][0].device)


def gt_attributes(target: Instances) -> Tensor:
    """Returns ``gt_attributes`` [G, M] int64, padded with -1. Without this field, the boxes have no attributes."""
    if target.has("gt_attributes"):
        return target.gt_attributes
    return torch.full_like(target.gt_classes, -1)[:, None]
