"""Regions whose boxes one network finds and another one describes."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bua.errors import InputError
from bua.extraction.batch_regions import RegionChooser
from bua.extraction.box_detectors import BoxDetector, load_box_detector
from bua.extraction.crops import FEATURE_DIM, CropEncoder
from bua.extraction.extractor_config import CROPS, ExtractorConfig, RegionChoice
from bua.extraction.select import regions_of_given
from bua.modeling.boxes import nms
from bua.modeling.region_detector import RegionDetector
from bua.structures import DetectedBoxes, DetectorInput, RegionPredictions, Regions


class BoxDescriber(Protocol):
    """A network that describes boxes."""

    def prepare(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to the network's input."""

    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        """Returns the regions of boxes [N, 4] of each image, in its pixels, in their order, on the host."""


def load_described_boxes(config: ExtractorConfig, device: str | None = None) -> "DescribedBoxes":
    """Loads the detector of boxes and the network that describes them.

    Args:
        config: A configuration with ``boxes_from``.
        device: By default MODEL.DEVICE of the configuration.
    """
    assert config.boxes_from is not None
    device = device or config.cfg().MODEL.DEVICE
    describer: BoxDescriber
    if config.features_from == CROPS:
        config.set_precision(device)
        describer = CropEncoder(config.crop_weights, device, bfloat16=config.precision == "bf16")
        feature_dim = FEATURE_DIM
    else:
        detector = config.load_detector(device)
        describer, feature_dim = DetectorAsDescriber(detector), detector.feature_dim
    return DescribedBoxes(load_box_detector(config.boxes_from, device), describer, torch.device(device), feature_dim)


@dataclass
class TwoInputs(DetectorInput):
    """An image as the detector of boxes takes it, and ``described``, as the other network takes it."""

    described: DetectorInput | None = None


class DescribedBoxes:
    """Finds boxes and describes them.

    Attributes:
        device: The device that both networks run on.
        feature_dim: Feature dimension.
    """

    convention = "detectron2"

    def __init__(self, boxes: BoxDetector, describer: BoxDescriber, device: torch.device, feature_dim: int):
        self.boxes, self.describer, self.device, self.feature_dim = boxes, describer, device, feature_dim

    def prepare(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to the inputs of both networks."""
        described = self.describer.prepare(image, image_id)
        return TwoInputs(**vars(self.boxes.prepare(image, image_id)), described=described)

    def choose(self, batch: list[DetectorInput], choice: RegionChoice) -> list[Regions]:
        """Returns the regions of each image, on the host, best first.

        They are the first ``choice.max_boxes`` boxes with a score of at least ``choice.score_threshold``, without those
        whose IoU with a better one of any class exceeds ``choice.nms_threshold``. An image without any has itself as
        the only region, without a class. If there are fewer than ``choice.min_boxes``, the last one is repeated.
        """
        found = [_first(one, choice) for one in self.boxes.detect_boxes(batch)]
        boxes = [
            one.boxes if len(one.boxes) else np.array([[0, 0, inputs.width, inputs.height]], np.float32)
            for one, inputs in zip(found, batch)
        ]
        regions = self.describe(batch, [torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in boxes])
        return [_repeated(_labelled(one, x), choice.min_boxes) for one, x in zip(regions, found)]

    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        """Returns the regions of boxes [N, 4] of each image, in its pixels, in their order, on the host."""
        inputs = [one.described for one in batch if isinstance(one, TwoInputs) and one.described is not None]
        return self.describer.describe(inputs, boxes)

    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        raise InputError("--boxes-from: boxes of another detector have no proposals; use a detector of regions")

    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        raise InputError("--boxes-from and --grid: choose one")


class DetectorAsDescriber:
    """Describes boxes by the features of a detector of regions."""

    def __init__(self, detector: RegionDetector):
        self.detector = detector

    def prepare(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        return self.detector.prepare(image, image_id)

    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        if isinstance(self.detector, RegionChooser):
            return self.detector.describe(batch, boxes)
        predictions = self.detector.infer(batch, boxes, regress=False)
        return [regions_of_given(one, inputs.image_id or 0) for one, inputs in zip(predictions, batch)]


def _first(found: DetectedBoxes, choice: RegionChoice) -> DetectedBoxes:
    rows = np.flatnonzero(found.scores >= choice.score_threshold)
    if choice.nms_threshold < 1:
        boxes, scores = torch.tensor(found.boxes[rows]), torch.tensor(found.scores[rows])
        rows = rows[nms(boxes, scores, choice.nms_threshold, "detectron2").numpy()]
    rows = rows[: choice.max_boxes]
    return DetectedBoxes(found.boxes[rows], found.scores[rows], found.classes[rows])


def _labelled(regions: Regions, found: DetectedBoxes) -> Regions:
    """Returns regions with the classes of the detector that found them, instead of those of the one that described
    them."""
    if not len(found.boxes):
        return replace(regions, object_ids=None, object_scores=None)
    return replace(regions, object_ids=found.classes, object_scores=found.scores.astype(np.float32))


def _repeated(regions: Regions, number: int) -> Regions:
    """Returns regions of which the last is repeated until there are ``number``."""
    if len(regions) >= number:
        return regions
    return regions.take(np.minimum(np.arange(number), len(regions) - 1))
