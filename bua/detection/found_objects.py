"""The objects that a detector finds in an image, with the attributes of each."""

from dataclasses import dataclass

import numpy as np

from bua.detection.evaluation.detections import object_detections
from bua.modeling.efficientdet import EfficientDetBoxes
from bua.modeling.region_detector import RegionDetector
from bua.modeling.vinvl import VinVLDetector
from bua.modeling.vinvl_detections import Detections
from bua.structures import DetectorInput, RegionPredictions


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


def detect_objects(
    detector: RegionDetector,
    batch: list[DetectorInput],
    threshold: float = 0.4,
    *,
    attribute_threshold: float = 0.1,
    max_attributes: int = 3,
) -> list[list[FoundObject]]:
    """Returns the objects that a detector finds in each image, best first: those of ``found_objects``; for VinVL's
    detector those that its own filter chooses, with the boxes of its demo; and for an EfficientDet, which has no
    attributes, those that it finds.

    Args:
        batch: What ``detector.prepare`` returned for the images.
        threshold, attribute_threshold, max_attributes: As for ``found_objects``.
    """
    if isinstance(detector, EfficientDetBoxes):
        return [
            [
                FoundObject(box, int(class_id), float(score), [])
                for box, score, class_id in zip(found.boxes, found.scores, found.classes)
                if score > threshold
            ]
            for found in detector.detect_boxes(batch)
        ]
    if not isinstance(detector, VinVLDetector):
        return [
            found_objects(
                predictions,
                threshold,
                attribute_threshold=attribute_threshold,
                max_attributes=max_attributes,
                convention=detector.convention,
            )
            for predictions in detector.infer(batch)
        ]
    regressed = detector.post_processing.nms_filter != 2  # this filter has no regressed boxes
    detections = detector.detect(batch, min_detections=0, score_threshold=threshold, regressed=regressed)
    return [_chosen_objects(found, attribute_threshold, max_attributes) for found in detections]


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


def _chosen_objects(found: Detections, attribute_threshold: float, max_attributes: int) -> list[FoundObject]:
    """Returns VinVL's detections, best first."""
    boxes, classes, scores = (values.cpu().numpy() for values in (found.boxes, found.classes, found.scores))
    objects = []
    for i in np.argsort(-scores, kind="stable"):
        attributes: list[tuple[int, float]] = []
        if found.attributes is not None and found.attribute_scores is not None:
            best = zip(found.attributes[i].tolist(), found.attribute_scores[i].tolist())
            attributes = [(id, score) for id, score in best if score > attribute_threshold][:max_attributes]
        objects.append(FoundObject(boxes[i], int(classes[i]), float(scores[i]), attributes))
    return objects


def _regions(predictions: RegionPredictions, rows: np.ndarray) -> list[int]:
    """Returns the region of each detection: the first one with the same score and the same box in its class."""
    assert predictions.boxes is not None
    probs, boxes = predictions.class_probs.float().cpu().numpy(), predictions.boxes.float().cpu().numpy()
    return [
        int(np.argmax((probs[:, int(row[0])] == row[1]) & (boxes[:, int(row[0])] == row[2:]).all(axis=1)))
        for row in rows
    ]
