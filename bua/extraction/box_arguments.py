"""The arguments of an extraction that takes its boxes from another detector."""

from collections.abc import Sequence
from pathlib import Path

from bua.errors import InputError
from bua.extraction.box_detectors import torchvision_names
from bua.extraction.class_names import class_names
from bua.extraction.crops import CROP_WEIGHTS
from bua.extraction.default_arguments import default_config
from bua.extraction.engines import TORCH, choose_engine
from bua.extraction.extractor_config import (
    CROPS,
    RANDOM_WEIGHTS,
    TORCHVISION,
    ExtractorConfig,
    RegionChoice,
    find_weights,
)
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.options import FEATURES_FROM
from bua.weights.zoo import fetch

# Minimum and maximum number of regions, minimum score and IoU of suppression: of proposals, and of the boxes of another
# detector, as in ChanningPing's code.
LIMITS, LIMITS_OF_BOXES = (10, 100, 0.2, 0.3), (0, 10, 0.1, 1.0)


def region_limits(
    boxes_from: str | Path | None,
    min_boxes: int | None,
    max_boxes: int | None,
    score_threshold: float | None,
    nms_threshold: float | None,
) -> tuple[int, int, float, float]:
    """Returns the minimum and maximum number of regions, the minimum score and the IoU of suppression, with defaults
    for those that are None."""
    least, most, score, iou = LIMITS if boxes_from is None else LIMITS_OF_BOXES
    min_boxes = least if min_boxes is None else min_boxes
    if max_boxes is None:
        max_boxes = most if boxes_from is None else max(most, min_boxes)
    score = score if score_threshold is None else score_threshold
    return min_boxes, max_boxes, score, iou if nms_threshold is None else nms_threshold


def box_source(
    name: str | Path | None,
    overrides: Sequence[str],
    choice: RegionChoice,
    *,
    features_from: str,
    config_file: str | Path | None,
    weights: str | Path | None,
) -> ExtractorConfig | None:
    """Returns the configuration of the detector that ``--boxes-from`` names; None if it names none.

    Args:
        name: "torchvision:<model>"; a configuration file, whose weights are those of ``find_weights``; or a checkpoint
            or the name of released weights.
        overrides: ``KEY VALUE`` pairs, which are those of this detector if its boxes are described by crops.
        choice: The choice of regions.
        features_from: One of ``bua.options.FEATURES_FROM``.
        config_file, weights: The detector of regions that the user named.

    Raises:
        InputError: There is no such detector, or another argument does not go together with it.
    """
    if features_from not in FEATURES_FROM:
        raise InputError(f"--features-from {features_from}: unknown; use one of {', '.join(FEATURES_FROM)}")
    if name is None:
        if features_from == CROPS:
            raise InputError(f"--features-from {CROPS}: name the detector of the boxes (--boxes-from)")
        return None
    for option in ("regressed", "boxes", "grid"):
        if getattr(choice, option):
            raise InputError(f"--boxes-from and --{option}: choose one")
    if features_from == CROPS and (config_file or weights):
        raise InputError(
            f"--features-from {CROPS}: uses only the detector of --boxes-from; leave out --detector and --config-file"
        )
    return _configuration(str(name), tuple(overrides) if features_from == CROPS else ())


def crop_weights_of(features_from: str, weights: str | Path | None) -> str:
    """Returns the file of the weights that describe crops, which is downloaded if necessary; "" if none do."""
    if features_from != CROPS:
        if weights is not None:
            raise InputError(f"--crop-weights: add --features-from {CROPS}, or leave it out")
        return ""
    return RANDOM_WEIGHTS if weights == RANDOM_WEIGHTS else str(fetch(weights or CROP_WEIGHTS))


def names_of_boxes(source: ExtractorConfig, vocabulary: str | Path | None) -> list[str] | None:
    """Returns the names of the classes of a detector of boxes, or None if they are not known.

    Args:
        vocabulary: A folder of names, as for ``class_names``.
    """
    if source.weights.startswith(TORCHVISION):
        return torchvision_names(source.weights)
    return class_names(source.cfg(), source.weights, source.weights, vocabulary, source.engine)[0]


def _configuration(name: str, overrides: tuple[str, ...]) -> ExtractorConfig:
    if name.startswith(TORCHVISION):
        torchvision_names(name)
        return ExtractorConfig(None, overrides, name)
    config_file = name if name.endswith(".yaml") else default_config(name)
    weights = None if name.endswith(".yaml") else name
    config = ExtractorConfig(config_file, overrides, name if weights is None else str(fetch(name)))
    engine = TORCH if _is_efficientdet(config) else choose_engine(None, config_file, weights or "", overrides)
    config = ExtractorConfig(config_file, overrides, config.weights, engine=engine)
    found = find_weights(weights, config.cfg(), config_file, "--boxes-from")
    return ExtractorConfig(config_file, overrides, found, engine=engine)


def _is_efficientdet(config: ExtractorConfig) -> bool:
    try:
        return bool(config.cfg().MODEL.META_ARCHITECTURE == EFFICIENTDET)
    except InputError:  # of a configuration that only Detectron2 can read
        return False
