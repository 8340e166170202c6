"""The configuration of an extraction: which detector runs, and which regions of each image are kept."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from bua.checkpoint import load_weights
from bua.config import get_cfg, load_cfg, merge_overrides
from bua.detection.description import cfg_of_weights
from bua.detection.own_data import follow_own_data
from bua.engine.checkpoints import last_checkpoint
from bua.errors import InputError
from bua.extraction.engines import DETECTRON2, TORCH, detectron2_plugin
from bua.modeling import build_detector
from bua.modeling.optimize import optimize_for_inference
from bua.modeling.region_detector import RegionDetector
from bua.modeling.vinvl import VinVLDetector
from bua.options import FEATURES_FROM
from bua.precision import set_float32_precision
from bua.weights.zoo import fetch, is_backbone

RANDOM_WEIGHTS = "random"
# Start of the names of torchvision's detectors, and the two ways to describe the boxes of another detector.
TORCHVISION = "torchvision:"
DETECTOR, CROPS = FEATURES_FROM
# Keys of which earlier versions knew nothing. They are among the settings only where they have other values than the
# defaults, so that outputs of these versions can be continued.
LATER_KEYS = ("MODEL.BUA.VINVL.", "MODEL.BUA.EFFICIENTDET.", "MODEL.RESNETS.DEFORM_")
# Keys that no feature depends on.
OTHER_KEYS = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BUA.DUMP.", "MODEL.BUA.EVALUATION.", "INPUT.FLIP_WORDS")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionChoice:
    """Which regions of each image are extracted.

    Attributes:
        min_boxes, max_boxes, score_threshold, nms_threshold: As for ``bua.extraction.select_regions``.
        regressed: Whether boxes are those regressed for each region's best class, instead of the proposals.
        boxes: A file of boxes to describe instead of proposals, as for ``bua.extraction.load_boxes``. All of them are
            kept, in their order.
        grid: Whether to extract the cells of the feature map instead of regions.
        keep_probabilities: Whether the regions have the probabilities of all classes, ``Regions.class_probs``.
    """

    min_boxes: int = 10
    max_boxes: int = 100
    score_threshold: float = 0.2
    nms_threshold: float = 0.3
    regressed: bool = False
    boxes: str | None = None
    grid: bool = False
    keep_probabilities: bool = False

    def check(self) -> None:
        """Raises InputError if a value is out of range, or if options exclude each other."""
        if not 0 <= self.min_boxes <= self.max_boxes or self.max_boxes == 0:
            raise InputError(
                f"min boxes {self.min_boxes}, max boxes {self.max_boxes}: need 0 <= min <= max and max > 0"
            )
        for name, value in {"score threshold": self.score_threshold, "NMS threshold": self.nms_threshold}.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} {value}: need a number from 0 to 1")
        chosen = [name for name in ("regressed", "boxes", "grid") if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(f"--{chosen[0]} and --{chosen[1]}: choose one")
        if self.grid and self.keep_probabilities:
            raise InputError("--grid and --keep-probabilities: cells have no classes; leave out one")


@dataclass(frozen=True)
class ExtractorConfig:
    """Everything that ``Extractor.from_config`` needs to make an extractor, also in other processes and on other
    machines.

    Attributes:
        config_file, overrides: As for ``bua.config.load_cfg``. With None, the configuration is the one that belongs to
            the weights (``bua.detection.description.cfg_of_weights``).
        weights: A checkpoint file, the name of one, or "random".
        choice: Which regions of each image are extracted.
        precision: Precision of the network: "fp32" computes in float32, on a GPU too; "tf32" lets a GPU multiply in
            TF32; "bf16" has convolutions in bfloat16.
        compile: Whether to compile a part of the network with torch.compile.
        batch_size: Number of images that go through the network together; None for the default of the device.
        num_workers: Number of threads that decode and resize images while the network runs.
        allow_missing: Whether parameters that the weights lack may keep random values.
        engine: "torch" or "detectron2", as ``bua.extraction.engines.choose_engine`` returns it.
        feature_layer: The fully connected layer of the box head whose output is the feature, such as "fc1", for
            "detectron2"; "" for the last one.
        boxes_from: The configuration of another detector, whose boxes are described instead of proposals.
        features_from: "detector" describes these boxes by the features of this configuration's detector; "crops" by a
            classifier on the parts of the image. This configuration is then the same as ``boxes_from``.
        crop_weights: The weights of that classifier, as for ``bua.extraction.crops.CropEncoder``.
    """

    config_file: str | None
    overrides: tuple[str, ...]
    weights: str
    choice: RegionChoice = field(default_factory=RegionChoice)
    precision: str = "fp32"
    compile: bool = False
    batch_size: int | None = None
    num_workers: int = 2
    allow_missing: bool = False
    engine: str = TORCH
    feature_layer: str = ""
    boxes_from: "ExtractorConfig | None" = None
    features_from: str = DETECTOR
    crop_weights: str = ""

    def cfg(self, device: str | None = None) -> CfgNode:
        """Returns the detector's configuration, with MODEL.DEVICE set to ``device`` if it is given."""
        overrides = [*self.overrides, *(["MODEL.DEVICE", device] if device else [])]
        if self.weights.startswith(TORCHVISION):
            of_torchvision = get_cfg()
            merge_overrides(of_torchvision, overrides)
            return of_torchvision
        plugin = detectron2_plugin() if self.engine == DETECTRON2 else None
        if self.config_file is None:
            return cfg_of_weights(self.weights, overrides, defaults=plugin.default_cfg() if plugin else None)
        cfg: CfgNode = (plugin.load_cfg if plugin else load_cfg)(self.config_file, overrides)
        # As in training, so that a configuration for the user's own data describes the same detector.
        follow_own_data(cfg, overrides[::2])
        return cfg

    def load_detector(self, device: str | None = None) -> RegionDetector:
        """Builds the detector, loads its weights and optimises it for inference. The precision of float32 is set for
        the whole process.

        Args:
            device: By default MODEL.DEVICE of the configuration.

        Raises:
            InputError: The weights or the choice do not fit the configuration, or the device does not exist.
        """
        if self.feature_layer and self.engine == TORCH:
            raise InputError(
                f"feature layer {self.feature_layer!r}: the torch engine's detectors have one layer of features; omit "
                "it, or take --engine detectron2"
            )
        cfg = self.cfg(device)
        self.set_precision(cfg.MODEL.DEVICE)
        # Random weights are the same in each run, so that a later run can continue the output of an earlier one.
        build = detectron2_plugin().build_network if self.engine == DETECTRON2 else build_detector
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                detector = build(cfg)
            except RuntimeError as error:
                if "allocate" not in str(error):
                    raise
                raise InputError("config: a detector of these sizes does not fit into the memory") from error
        if isinstance(detector, VinVLDetector):
            detector.check_choice(self.choice)
        if self.weights == RANDOM_WEIGHTS:
            logger.warning("weights random: the weights are not trained, so the features have no meaning")
        else:
            for line in load_weights(detector, self.weights, allow_missing=self.allow_missing).lines():
                logger.warning("%s: %s", self.weights, line)
        if self.engine == DETECTRON2:
            made: RegionDetector = detectron2_plugin().make_detector(cfg, detector, self)
            return made
        return optimize_for_inference(detector, precision=self.precision, compile=self.compile)

    def set_precision(self, device: str) -> None:
        """Sets the precision of float32 for the whole process."""
        # On a CPU it would let some products be in bfloat16.
        on_cpu = torch.device(device).type == "cpu"
        set_float32_precision("high" if self.precision == "tf32" and not on_cpu else "highest")


def find_weights(
    weights: str | Path | None, cfg: CfgNode, config_file: str | Path | None, option: str = "--detector"
) -> str:
    """Returns the path of a checkpoint file, which is downloaded if necessary, or ``RANDOM_WEIGHTS``.

    Args:
        weights: A checkpoint file, the name of a released one, an address, or ``RANDOM_WEIGHTS``; None for
            MODEL.WEIGHTS of ``cfg``, or the newest checkpoint in its OUTPUT_DIR.
        config_file: The file that ``cfg`` was read from, for messages.
        option: The option of commands that names the weights, for messages.
    """
    if weights == RANDOM_WEIGHTS or str(weights).startswith(TORCHVISION):
        return str(weights)
    if weights:
        return str(fetch(weights))
    if cfg.MODEL.WEIGHTS and not is_backbone(cfg.MODEL.WEIGHTS):
        return str(fetch(cfg.MODEL.WEIGHTS))
    newest = last_checkpoint(cfg.OUTPUT_DIR)
    if newest is None:
        raise InputError(
            f"weights ({option}): none given; MODEL.WEIGHTS of {config_file} is {cfg.MODEL.WEIGHTS!r}, which is not a "
            f"detector, and {cfg.OUTPUT_DIR} holds no training; give a trained detector's checkpoint or the name of a "
            f"released one{f', or {RANDOM_WEIGHTS!r} to try the program' if option == '--detector' else ''}"
        )
    return str(newest)


def settings_of(config: ExtractorConfig, cfg: CfgNode, format: str, reader: str | None = None) -> dict[str, object]:
    """Returns all settings that the features depend on, apart from the images, as one flat dictionary whose values
    survive a round trip through JSON."""
    settings: dict[str, object] = {
        "format": format,
        "weights": fingerprint(config.weights),
        "precision": config.precision,
        **asdict(config.choice),
    }
    if config.choice.boxes:
        settings["boxes"] = fingerprint(config.choice.boxes)
    # Outputs of earlier versions, which had none of these, can be continued.
    if reader is not None:
        settings["for"] = reader
    if not config.choice.keep_probabilities:
        del settings["keep_probabilities"]
    if config.engine != TORCH:
        settings |= {"engine": config.engine, "feature_layer": config.feature_layer}
    if config.boxes_from is not None:
        of_boxes_cfg = config.boxes_from.cfg()
        boxes = settings_of(config.boxes_from, of_boxes_cfg, format)
        of_boxes = {key: value for key, value in boxes.items() if key == "weights" or "." in key}
        settings |= {f"boxes_from.{key}": value for key, value in of_boxes.items()}
        settings["boxes_from.TEST.DETECTIONS_PER_IMAGE"] = of_boxes_cfg.TEST.DETECTIONS_PER_IMAGE
        settings |= {"features_from": config.features_from, "crop_weights": fingerprint(config.crop_weights)}
    for node, name in ((cfg.MODEL, "MODEL"), (cfg.INPUT, "INPUT")):
        settings.update(_flatten(node, f"{name}."))
    defaults = _flatten(get_cfg().MODEL, "MODEL.")
    for key in list(settings):
        unchanged = key.startswith(LATER_KEYS) and settings[key] == defaults[key]
        if key.startswith(OTHER_KEYS) or "TRAIN" in key or unchanged:
            del settings[key]
    round_trip: dict[str, object] = json.loads(json.dumps(settings))
    return round_trip


def fingerprint(path: str) -> str:
    """Returns the SHA-256 of a file, or ``path`` itself if it is not a file, such as a folder or "random"."""
    if not os.path.isfile(path):
        return path
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _flatten(node: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
