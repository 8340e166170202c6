"""The objects that a detector finds in an image, with the attributes of each."""

from dataclasses import dataclass

import numpy as np

from bua.detection.evaluation.detections import object_detections
from bua.structures import RegionPredictions


@dataclass
class FoundObject:
    """An object that a detector found.

    Attributes:
        box: [4] float32 x1y1x2y2 in pixels of the original image.
        class_id: Object class, from 0.
        score: Probability of the class, 0 to 1.
        attributes: Attribute ids and their probabilities, the most probable ones first.
    """

    box: np.ndarray
    class_id: int
    score: float
    attributes: list[tuple[int, float]]


def found_objects(
    predictions: RegionPredictions,
    threshold: float = 0.4,
    *,
    attribute_threshold: float = 0.1,
    max_attributes: int = 3,
    convention: str = "caffe",
) -> list[FoundObject]:
    """Returns the objects found in an image, best first, with the attributes of the region of each.

    Args:
        predictions: Predictions of the detector for the image.
        threshold: Least probability of an object. The original's demo uses 0.4.
        attribute_threshold: An attribute is named if its probability exceeds this. The original's demo uses 0.1. The
            probabilities of all attributes sum to 1, so several attributes that all apply have low probabilities.
        max_attributes: Number of attributes per object, at most.
        convention: Convention of the boxes, "caffe" or "detectron2".
    """
    rows = object_detections(predictions, convention=convention, score_threshold=threshold)
    found = []
    for row, region in zip(rows, _regions(predictions, rows)):
        attributes: list[tuple[int, float]] = []
        if predictions.attribute_probs is not None:
            probs = predictions.attribute_probs[region].float().cpu().numpy()
            best = np.argsort(-probs, kind="stable")[:max_attributes]
            attributes = [(int(i), float(probs[i])) for i in best if probs[i] > attribute_threshold]
        found.append(FoundObject(row[2:], int(row[0]), float(row[1]), attributes))
    return found


def _regions(predictions: RegionPredictions, rows: np.ndarray) -> list[int]:
    """Returns the region of each detection: the first one with the same score and the same box in its class."""
    assert predictions.boxes is not None
    probs, boxes = predictions.class_probs.float().cpu().numpy(), predictions.boxes.float().cpu().numpy()
    return [
        int(np.argmax((probs[:, int(row[0])] == row[1]) & (boxes[:, int(row[0])] == row[2:]).all(axis=1)))
        for row in rows
    ]
