"""What an extraction is told: which detector, and what of each image."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from bua.checkpoint import load_weights
from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import Detector, build_detector
from bua.modeling.optimize import optimize_for_inference
from bua.weights.zoo import ZOO, fetch

RANDOM_WEIGHTS = "random"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionChoice:
    """What of each image is extracted.

    Attributes:
        min_boxes, max_boxes, score_threshold, nms_threshold: as for ``bua.extraction.select_regions``.
        regressed: the boxes are those regressed for each region's best class, not the proposals.
        boxes: a file of boxes to describe instead of proposals, as for ``bua.extraction.load_boxes``; all are kept,
            in their order.
        grid: the cells of the feature map instead of regions.
    """

    min_boxes: int = 10
    max_boxes: int = 100
    score_threshold: float = 0.2
    nms_threshold: float = 0.3
    regressed: bool = False
    boxes: str | None = None
    grid: bool = False

    def check(self) -> None:
        """Raises InputError for values that are none, or do not go together."""
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


@dataclass(frozen=True)
class ExtractorConfig:
    """A detector and what it is to extract. It travels to other processes and machines, where ``load`` builds the
    detector.

    Attributes:
        config_file, overrides: as for ``bua.config.load_cfg``.
        weights: a checkpoint file, or "random".
        precision: of the convolutions, "fp32" or "bf16".
        compile: whether torch.compile makes the backbone and the heads.
        batch_size: images of one size that go through the network together.
        num_workers: threads that decode and resize ahead of the network.
        allow_missing: whether parameters that the weights lack may keep random values.
    """

    config_file: str
    overrides: tuple[str, ...]
    weights: str
    choice: RegionChoice = field(default_factory=RegionChoice)
    precision: str = "fp32"
    compile: bool = False
    batch_size: int = 1
    num_workers: int = 2
    allow_missing: bool = False

    def cfg(self, device: str | None = None):
        """The configuration, on another device where one is given."""
        return load_cfg(self.config_file, [*self.overrides, *(["MODEL.DEVICE", device] if device else [])])

    def load(self, device: str | None = None) -> Detector:
        """The detector, ready to infer, on ``device`` or on the configuration's.

        Raises:
            InputError: the weights do not fit the configuration, or the device is not here.
        """
        # Random weights are the same in each run, so that one can go on with another's output.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            detector = build_detector(self.cfg(device))
        if self.weights == RANDOM_WEIGHTS:
            logger.warning("random weights, as asked for: the features mean nothing")
        else:
            for line in load_weights(detector, self.weights, allow_missing=self.allow_missing).lines():
                logger.warning("%s: %s", self.weights, line)
        return optimize_for_inference(detector, precision=self.precision, compile=self.compile)


def extractor_config(
    config_file: str | Path,
    weights: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    min_boxes: int = 10,
    max_boxes: int = 100,
) -> ExtractorConfig:
    """A config for single images, such as those that the heads are asked about. Arguments and errors as for
    ``bua.extraction.extract``."""
    choice = RegionChoice(min_boxes, max_boxes)
    choice.check()
    config = ExtractorConfig(str(config_file), tuple(overrides), "", choice)
    return replace(config, weights=find_weights(weights, config.cfg(), config_file))


def find_weights(weights: str | Path | None, cfg, config_file: str | Path) -> str:
    """A checkpoint file, fetched where it must be, or ``RANDOM_WEIGHTS``."""
    if weights == RANDOM_WEIGHTS:
        return RANDOM_WEIGHTS
    if not weights and not os.path.isfile(cfg.MODEL.WEIGHTS) and cfg.MODEL.WEIGHTS not in ZOO:
        raise InputError(
            f"weights: none given, and MODEL.WEIGHTS of {config_file} is {cfg.MODEL.WEIGHTS!r}, not a checkpoint here; "
            f"give a trained detector's checkpoint, or {RANDOM_WEIGHTS!r} to try things out"
        )
    return str(fetch(weights or cfg.MODEL.WEIGHTS))


def settings_of(config: ExtractorConfig, cfg, format: str) -> dict:
    """All that the features depend on besides the images, flat, as it comes back from JSON."""
    settings = {
        "format": format,
        "weights": fingerprint(config.weights),
        "precision": config.precision,
        **asdict(config.choice),
    }
    if config.choice.boxes:
        settings["boxes"] = fingerprint(config.choice.boxes)
    for node, name in ((cfg.MODEL, "MODEL"), (cfg.INPUT, "INPUT")):
        settings.update(_flatten(node, f"{name}."))
    for key in list(settings):
        if key in ("MODEL.DEVICE", "MODEL.WEIGHTS") or "TRAIN" in key:
            del settings[key]
    return json.loads(json.dumps(settings))


def fingerprint(path: str) -> str:
    """The SHA-256 of a file; what is no file, such as a folder or a word, stands for itself."""
    if not os.path.isfile(path):
        return path
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _flatten(node: dict, prefix: str) -> dict:
    flat = {}
    for key, value in node.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
