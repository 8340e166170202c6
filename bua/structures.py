"""What the parts of bua hand to each other."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class DetectorInput:
    """One image as the network sees it, with its ground truth in training.

    "Network pixels" are those of the resized image; a box in them is a box in the original image times
    ``scale``.

    Attributes:
        image: [3, H, W] float32, BGR, 0 to 255, resized; the detector subtracts the mean.
        width, height: size of the original image in pixels.
        scale: (x, y) network pixels per original pixel.
        image_id: as the data set has it.
        boxes: [G, 4] float32 x1y1x2y2 in network pixels, or None where there is no ground truth.
        classes: [G] int64, from 0.
        attributes: [G, M] int64, from 0, padded with -1; a row of -1 alone is a box without attributes.
    """

    image: torch.Tensor
    width: int
    height: int
    scale: tuple[float, float]
    image_id: int | str | None = None
    boxes: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    attributes: torch.Tensor | None = None


@dataclass
class RegionPredictions:
    """What the detector says about R regions of one image; all tensors are on the detector's device.

    Attributes:
        width, height: size of the original image in pixels.
        proposals: [R, 4] float32 x1y1x2y2 in original pixels: the boxes that ``features`` were pooled from, in
            the order of ``objectness``, best first (or the boxes that the caller gave, in the caller's order).
        objectness: [R] float32, 0 to 1; all ones for boxes that the caller gave.
        class_probs: [R, C] float32, softmax over C + 1 with background left out.
        boxes: [R, C, 4] float32 x1y1x2y2 in original pixels: each proposal regressed for each class, clipped;
            None where the detector was told not to regress.
        features: [R, D] float32, >= 0.
        attribute_probs: [R, A] float32, softmax over A + 1 with "no attribute" left out; None for a detector
            without attributes.
    """

    width: int
    height: int
    proposals: torch.Tensor
    objectness: torch.Tensor
    class_probs: torch.Tensor
    boxes: torch.Tensor | None
    features: torch.Tensor
    attribute_probs: torch.Tensor | None = None


@dataclass
class Regions:
    """The regions of one image: the currency between the detector and what lives on its features.

    Attributes:
        image_id: as the source of the images has it.
        width, height: size of the original image in pixels.
        boxes: [n, 4] float32 x1y1x2y2 in original pixels.
        features: [n, d] float32.
        object_ids, attribute_ids: [n] int64, from 0, without background and without "no attribute"; None where
            the source does not know them.
        object_scores, attribute_scores: [n] float32 probabilities of those; None likewise.
    """

    image_id: int | str
    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray
    object_ids: np.ndarray | None = None
    object_scores: np.ndarray | None = None
    attribute_ids: np.ndarray | None = None
    attribute_scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)
