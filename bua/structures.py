"""The data that the parts of bua pass to each other."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch


@dataclass
class DetectorInput:
    """One image as the network takes it, with its ground truth during training.

    "Network pixels" are the pixels of the resized image: a box in network pixels is the box in the original image
    times ``scale``.

    Attributes:
        image: [3, H, W] float32, BGR, 0 to 255, resized. The detector subtracts the mean.
        width, height: Size of the original image in pixels.
        scale: (x, y) network pixels per original pixel.
        image_id: The image's id in its data set.
        boxes: [G, 4] float32 x1y1x2y2 in network pixels, or None if there is no ground truth.
        classes: [G] int64, counted from 0.
        attributes: [G, M] int64, counted from 0, padded with -1. A row that contains only -1 is a box without
            attributes.
    """

    image: torch.Tensor
    width: int
    height: int
    scale: tuple[float, float]
    image_id: int | str | None = None
    boxes: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    attributes: torch.Tensor | None = None

    def pin_memory(self) -> "DetectorInput":
        """Returns the same with all tensors in page-locked memory, from which copies to a GPU are asynchronous.

        torch's DataLoader calls this method if it is to pin its batches.
        """
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        pinned = {name: value.pin_memory() for name, value in values.items() if isinstance(value, torch.Tensor)}
        return DetectorInput(**{**values, **pinned})


@dataclass
class RegionPredictions:
    """The detector's predictions for R regions of one image. All tensors are on the detector's device.

    Attributes:
        width, height: Size of the original image in pixels.
        proposals: [R, 4] float32 x1y1x2y2 in original pixels: the boxes that ``features`` were pooled from, in
            descending order of ``objectness`` (or the boxes that the caller gave, in the caller's order).
        objectness: [R] float32, 0 to 1. All ones for boxes that the caller gave.
        class_probs: [R, C] float32: the softmax over C + 1 classes, without the background's column.
        boxes: [R, C, 4] float32 x1y1x2y2 in original pixels: each proposal regressed for each class and clipped.
            None if the detector was asked not to regress.
        features: [R, D] float32, >= 0.
        attribute_probs: [R, A] float32: the softmax over A + 1 attributes, without the column of "no attribute". None
            for a detector without attributes.
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
class DetectedBoxes:
    """The objects that a detector found in one image, best first.

    Attributes:
        boxes: [n, 4] float32 x1y1x2y2 in original pixels.
        scores: [n] float32, 0 to 1, in descending order.
        classes: [n] int64, counted from 0 without background.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass
class Regions:
    """The regions of one image. Extraction produces them, and all code that uses region features takes them.

    Attributes:
        image_id: The image's id in its source.
        width, height: Size of the original image in pixels.
        boxes: [n, 4] float32 x1y1x2y2 in original pixels.
        features: [n, d] float32.
        object_ids, attribute_ids: [n] int64, counted from 0 without background and without "no attribute". None if
            the source does not provide them.
        object_scores, attribute_scores: [n] float32, the probabilities of these ids. None if the source does not
            provide them.
        class_probs: [n, C] float16, the probabilities of all object classes without background, whose probability is 1
            minus their sum. None unless they were kept at extraction (``keep_probabilities``).
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
    class_probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> "Regions":
        """Returns the regions in ``rows`` [m] int64, in this order."""
        arrays: dict[str, Any] = {name: x[rows] for name, x in vars(self).items() if isinstance(x, np.ndarray)}
        return replace(self, **arrays)
