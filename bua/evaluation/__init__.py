"""Scores for what the models find."""

from bua.evaluation.average_precision import (
    PROTOCOLS,
    PrecisionRecall,
    average_precision,
    mean_average_precision,
    precision_recall,
)
from bua.evaluation.captions import caption_scores
from bua.evaluation.coco import coco_average_precision
from bua.evaluation.detections import attribute_detections, object_detections
from bua.evaluation.grounding import grounding_recall
from bua.evaluation.inference import evaluate_detector
from bua.evaluation.visual_genome import VisualGenomeEvaluator
from bua.evaluation.vqa import vqa_accuracy

__all__ = [
    "PROTOCOLS",
    "PrecisionRecall",
    "VisualGenomeEvaluator",
    "attribute_detections",
    "average_precision",
    "caption_scores",
    "coco_average_precision",
    "evaluate_detector",
    "grounding_recall",
    "mean_average_precision",
    "object_detections",
    "precision_recall",
    "vqa_accuracy",
]
