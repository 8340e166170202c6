"""Builds the detector that a configuration describes."""

import torch

from bua.config import check_device
from bua.errors import InputError
from bua.io.images import Resize
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import ResNetC4, freeze_parameters
from bua.modeling.detector import Detector
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.modeling.efficientdet import NO_FEATURES, EfficientDet, build_efficientdet
from bua.modeling.grid_detector import AttributeStandardROIHeads, GridDetector, ResNetC5
from bua.modeling.roi_heads import AttributeRes5ROIHeads, ROIHeads
from bua.modeling.rpn import RPN
from bua.modeling.supported import C4_VALUES, GRID_HEADS, GRID_VALUES, check_network
from bua.modeling.vinvl import META_ARCHITECTURE as VINVL
from bua.modeling.vinvl import build_vinvl

# The values of MODEL.META_ARCHITECTURE that Detectron2 does not have.
TORCH_ALONE = (EFFICIENTDET, VINVL)


def build_model(cfg) -> Detector | EfficientDet:
    """Returns the model that ``cfg`` describes, to train it: that of ``build_detector``, or an EfficientDet."""
    return build_efficientdet(cfg) if cfg.MODEL.META_ARCHITECTURE == EFFICIENTDET else build_detector(cfg)


def build_detector(cfg) -> Detector:
    """Returns the detector that ``cfg`` describes, with random weights, on cfg.MODEL.DEVICE.

    Raises:
        InputError: ``cfg`` asks for something that this engine does not have, or for boxes without features.
    """
    if cfg.MODEL.META_ARCHITECTURE == EFFICIENTDET:
        raise InputError(f"MODEL.META_ARCHITECTURE: {NO_FEATURES}")
    if cfg.MODEL.META_ARCHITECTURE == VINVL:
        return build_vinvl(cfg)
    check_supported(cfg)
    check_device(cfg.MODEL.DEVICE)
    of_grid = cfg.MODEL.ROI_HEADS.NAME in GRID_HEADS
    backbone = ResNetC5(cfg) if of_grid else ResNetC4(cfg)
    proposal_generator = RPN(cfg, backbone.out_channels, AnchorGenerator(cfg, [backbone.stride]))
    roi_heads: ROIHeads = (
        AttributeStandardROIHeads(cfg, backbone.out_channels) if of_grid else AttributeRes5ROIHeads(cfg)
    )
    kind = GridDetector if of_grid else Detector
    detector = kind(
        backbone=backbone,
        proposal_generator=proposal_generator,
        roi_heads=roi_heads,
        resize=Resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE),
        pixel_mean=torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1),
        pixel_std=torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1),
        box_weights=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
        convention=cfg.MODEL.BUA.BOX_CONVENTION,
    )
    detector.backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    freeze_parameters(detector, cfg.MODEL.BUA.FREEZE)
    detector.to(cfg.MODEL.DEVICE)
    # On a CPU, oneDNN's convolutions take two thirds of the time in this order of the elements. A GPU's tensor cores
    # want it too, and cuDNN would convert to it and back.
    detector.to(memory_format=torch.channels_last)
    return detector


def check_supported(cfg) -> None:
    """Raises InputError if ``cfg``, a configuration of either engine, describes a detector that this engine does not
    have."""
    if cfg.MODEL.META_ARCHITECTURE not in TORCH_ALONE:
        of_grid = cfg.MODEL.ROI_HEADS.NAME in GRID_HEADS
        check_network(cfg, GRID_VALUES if of_grid else C4_VALUES, "the torch engine supports")
