"""Detectors whose boxes another network describes: those of bua, of Detectron2, and of torchvision."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torchvision
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import load_weights
from bua.detection.evaluation.detections import object_detections
from bua.errors import InputError
from bua.extraction.extractor_config import RANDOM_WEIGHTS, TORCHVISION, ExtractorConfig
from bua.modeling.build import build_model
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.modeling.efficientdet import EfficientDet, EfficientDetBoxes
from bua.modeling.region_detector import RegionDetector
from bua.structures import DetectedBoxes, DetectorInput


class BoxDetector(Protocol):
    """What extraction needs of a detector of boxes. ``prepare`` converts an image [H, W, 3] uint8 BGR, and optionally
    its id, to the network's input."""

    @property
    def prepare(self) -> Callable[..., DetectorInput]: ...

    def detect_boxes(self, batch: list[DetectorInput]) -> list[DetectedBoxes]:
        """Returns the objects found in each image, best first, on the host."""


def load_box_detector(config: ExtractorConfig, device: str) -> BoxDetector:
    """Loads the detector that ``config`` describes.

    Raises:
        InputError: The weights do not fit the configuration, or torchvision has no such detector.
    """
    if config.weights.startswith(TORCHVISION):
        return TorchvisionBoxes(_torchvision_model(config.weights), device)
    cfg = config.cfg(device)
    if cfg.MODEL.META_ARCHITECTURE != EFFICIENTDET:
        return BoxesOfRegions(config.load_detector(device), cfg)
    return load_efficientdet(config, cfg)


def load_efficientdet(config: ExtractorConfig, cfg: CfgNode) -> EfficientDetBoxes:
    """Loads the EfficientDet that ``config`` describes.

    Args:
        cfg: ``config.cfg(device)``.

    Raises:
        InputError: The weights do not fit the configuration, or effdet is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(cfg)
    assert isinstance(model, EfficientDet)
    if config.weights != RANDOM_WEIGHTS:
        load_weights(model, config.weights)
    return model.for_inference()


class BoxesOfRegions:
    """Detects objects with a detector of regions, as the evaluation does.

    Args:
        detector: A detector of either engine.
        cfg: Its configuration, whose MODEL.ROI_HEADS.SCORE_THRESH_TEST and NMS_THRESH_TEST and
            TEST.DETECTIONS_PER_IMAGE say which objects are found.
    """

    def __init__(self, detector: RegionDetector, cfg: CfgNode):
        self.detector, self.prepare = detector, detector.prepare
        self.limits: dict[str, Any] = {
            "nms_threshold": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        }

    def detect_boxes(self, batch: list[DetectorInput]) -> list[DetectedBoxes]:
        found = []
        for predictions in self.detector.infer(batch, regress=True):
            rows = object_detections(predictions, convention=self.detector.convention, **self.limits)
            found.append(DetectedBoxes(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64)))
        return found


class TorchvisionBoxes:
    """Detects objects with a detection model of torchvision, such as ``fasterrcnn_resnet50_fpn``, which resizes images
    and suppresses boxes itself."""

    def __init__(self, model: nn.Module, device: str):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)

    def prepare(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to RGB from 0 to 1, without changing its size."""
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))).float() / 255
        return DetectorInput(pixels, width, height, (1.0, 1.0), image_id)

    @torch.inference_mode()
    def detect_boxes(self, batch: list[DetectorInput]) -> list[DetectedBoxes]:
        """Returns the objects found in each image. Classes are torchvision's labels without the background, minus 1."""
        outputs = self.model([inputs.image.to(self.device, non_blocking=True) for inputs in batch])
        found = []
        for output in outputs:
            boxes, scores, labels = (output[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
            order = np.argsort(-scores, kind="stable")
            found.append(DetectedBoxes(boxes[order], scores[order], labels[order].astype(np.int64) - 1))
        return found


def torchvision_names(name: str) -> list[str]:
    """Returns the names of the classes of "torchvision:<model>", counted from 0 without background.

    Raises:
        InputError: torchvision has no such detection model.
    """
    model = name.removeprefix(TORCHVISION)
    if model not in torchvision.models.list_models(torchvision.models.detection):
        known = ", ".join(torchvision.models.list_models(torchvision.models.detection))
        raise InputError(f"--boxes-from {name}: torchvision has no such detector; use one of {known}")
    return list(torchvision.models.get_model_weights(model).DEFAULT.meta["categories"][1:])


def _torchvision_model(name: str) -> nn.Module:
    torchvision_names(name)
    try:
        model: nn.Module = torchvision.models.get_model(name.removeprefix(TORCHVISION), weights="DEFAULT")
    except OSError as error:  # its weights are downloaded
        raise InputError(f"--boxes-from {name}: its weights cannot be downloaded ({error}); try again") from error
    return model
