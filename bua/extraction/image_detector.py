"""A detector that is loaded once and applied to images in memory, with the names of its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bua.errors import InputError
from bua.extraction.batch_regions import select_batch
from bua.extraction.box_detectors import load_efficientdet
from bua.extraction.class_names import class_names
from bua.extraction.default_arguments import default_config
from bua.extraction.engines import TORCH, choose_engine
from bua.extraction.extractor_config import RANDOM_WEIGHTS, ExtractorConfig, RegionChoice, fingerprint
from bua.extraction.sources import ImageFile
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.modeling.region_detector import RegionDetector
from bua.structures import DetectorInput, RegionPredictions, Regions
from bua.weights.zoo import fetch


class ImageDetector:
    """A detector, the choice of regions, and the names of the classes.

    Attributes:
        detector: The network.
        choice: Which regions of an image are kept.
        name: The checkpoint or the name that the detector was opened by, for messages.
        fingerprint: "sha256:" and the SHA-256 of its weights file, as in the settings of extracted features.
        objects, attributes: Names of the classes, counted from 0; None if they are not known, and an empty list if the
            detector has no attribute head.
    """

    def __init__(
        self,
        detector: RegionDetector,
        choice: RegionChoice,
        *,
        name: str,
        fingerprint: str,
        objects: list[str] | None,
        attributes: list[str] | None,
    ):
        self.detector, self.choice, self.name, self.fingerprint = detector, choice, name, fingerprint
        self.objects, self.attributes = objects, attributes

    @property
    def device(self) -> torch.device:
        return self.detector.device

    def regions(self, images: Sequence[np.ndarray]) -> list[Regions]:
        """Returns the chosen regions of images [H, W, 3] uint8 BGR. Their image ids count from 0."""
        files = [ImageFile(f"image {number}", number) for number in range(len(images))]
        outcomes = select_batch(self.detector, self.choice, files, self._prepare(images)) if images else []
        return [outcome.regions for outcome in outcomes if outcome.regions is not None]

    def predictions(self, images: Sequence[np.ndarray], *, regress: bool = True) -> list[RegionPredictions]:
        """Returns the predictions for all proposals of images [H, W, 3] uint8 BGR.

        Args:
            regress: As for ``bua.modeling.Detector.infer``.
        """
        return self.detector.infer(self._prepare(images), regress=regress)

    def _prepare(self, images: Sequence[np.ndarray]) -> list[DetectorInput]:
        return [self.detector.prepare(image) for image in images]

    def class_names(self) -> tuple[list[str], list[str]]:
        """Returns the names of the objects and of the attributes.

        Raises:
            InputError: They are not known.
        """
        if self.objects is None or self.attributes is None:
            raise InputError(
                f"{self.name}: does not hold the names of its classes; name the folder of objects_vocab.txt and "
                "attributes_vocab.txt as the vocabulary"
            )
        return self.objects, self.attributes


def open_detector(
    weights: str | Path,
    *,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    choice: RegionChoice | None = None,
    vocabulary: str | Path | None = None,
    precision: str = "fp32",
    engine: str | None = None,
    feature_layer: str = "",
    boxes_only: bool = False,
) -> ImageDetector:
    """Loads a detector for images in memory.

    Args:
        weights: A checkpoint, the name of a released one (``bua.weights.zoo.ZOO``) or of the one that comes with the
            package ("shapes"), an address, or "random" for random weights.
        config_file, overrides: As for ``bua.config.load_cfg``; by default the configuration that the checkpoint holds,
            or that belongs to the released weights.
        device: A torch device; by default that of the configuration.
        choice: Which regions of an image are kept; by default 10 to 100.
        vocabulary: Folder of objects_vocab.txt and attributes_vocab.txt; by default the names that the checkpoint
            holds, those of the released weights, or those of the configuration's data set.
        precision: As for ``bua.modeling.optimize.optimize_for_inference``.
        engine: "torch" or "detectron2"; by default "torch" if it has the detector.
        feature_layer: As in ``ExtractorConfig``.
        boxes_only: Whether the caller needs only boxes with classes. An EfficientDet, which has no features, is refused
            otherwise.

    Raises:
        InputError: A file cannot be read, no configuration is known, or the weights do not fit the configuration.
    """
    choice = choice or RegionChoice()
    choice.check()
    if weights == RANDOM_WEIGHTS and config_file is None:
        raise InputError(f"weights {RANDOM_WEIGHTS}: name the configuration file, too (--config-file)")
    config_file = config_file or default_config(weights)
    engine = choose_engine(engine, config_file, weights, overrides)
    config = ExtractorConfig(
        None if config_file is None else str(config_file),
        tuple(overrides),
        str(weights),
        choice,
        precision,
        engine=engine,
        feature_layer=feature_layer,
    )
    path = weights if weights == RANDOM_WEIGHTS else fetch(weights)
    cfg = config.cfg(device)
    objects, attributes = class_names(cfg, weights, path, vocabulary, engine)
    config = replace(config, weights=str(path))
    without_features = boxes_only and engine == TORCH and cfg.MODEL.META_ARCHITECTURE == EFFICIENTDET
    return ImageDetector(
        load_efficientdet(config, cfg) if without_features else config.load_detector(device),
        choice,
        name=str(weights),
        fingerprint=fingerprint(str(path)),
        objects=objects,
        attributes=attributes,
    )
