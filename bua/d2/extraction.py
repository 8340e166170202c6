"""What the extraction of features needs of Detectron2. ``bua.extraction.engines`` finds this module by its name."""

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from bua.config import check_device
from bua.d2.config import default_cfg, explaining_build_errors, find_in_zoo, load_cfg, zoo_weights
from bua.d2.region_detector import NO_GRID, Detectron2Detector
from bua.errors import InputError
from bua.extraction.extractor_config import ExtractorConfig
from bua.modeling.build import TORCH_ALONE

__all__ = ["build_network", "catalog_names", "default_cfg", "find_in_zoo", "load_cfg", "make_detector", "zoo_weights"]


def build_network(cfg: CfgNode) -> nn.Module:
    """Returns the model that ``cfg`` describes, with random weights, on MODEL.DEVICE.

    Raises:
        InputError: The device does not exist, or Detectron2 cannot build such a model.
    """
    check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.META_ARCHITECTURE in TORCH_ALONE:
        raise InputError(
            f"--engine detectron2: Detectron2 has no {cfg.MODEL.META_ARCHITECTURE} (MODEL.META_ARCHITECTURE); use "
            "--engine torch"
        )
    with explaining_build_errors():
        model = build_model(cfg)
    if cfg.MODEL.DEVICE == "cpu":
        # Convolutions on the CPU are faster in this order of the elements.
        model.to(memory_format=torch.channels_last)
    return model


def make_detector(cfg: CfgNode, model: nn.Module, config: ExtractorConfig) -> Detectron2Detector:
    """Returns the detector of an extraction for a model that ``build_network`` returned.

    Raises:
        InputError: The model has no features of regions, or an option of ``config`` is not one of this engine.
    """
    if config.choice.grid:
        raise InputError(NO_GRID)
    if config.compile:
        raise InputError("compile: no part of Detectron2's models is compiled; omit --compile")
    model.eval().requires_grad_(False)
    return Detectron2Detector(cfg, model, layer=config.feature_layer, precision=config.precision)


def catalog_names(cfg: CfgNode) -> list[str] | None:
    """Returns the names of the object classes that Detectron2's metadata has for the first of DATASETS.TEST, or None if
    it has none."""
    if not cfg.DATASETS.TEST or cfg.DATASETS.TEST[0] not in MetadataCatalog.list():
        return None
    names: list[str] | None = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes")
    return names
