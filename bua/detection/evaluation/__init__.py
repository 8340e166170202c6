"""Evaluation of the detector: average precision of objects and attributes."""

from bua.detection.evaluation.average_precision import (
    PROTOCOLS,
    PrecisionRecall,
    average_precision,
    mean_average_precision,
    precision_recall,
)
from bua.detection.evaluation.coco import coco_average_precision
from bua.detection.evaluation.detections import attribute_detections, object_detections
from bua.detection.evaluation.evaluator import VisualGenomeEvaluator
from bua.detection.evaluation.run import evaluate_detector

__all__ = [
    "PROTOCOLS",
    "PrecisionRecall",
    "VisualGenomeEvaluator",
    "attribute_detections",
    "average_precision",
    "coco_average_precision",
    "evaluate_detector",
    "mean_average_precision",
    "object_detections",
    "precision_recall",
]
