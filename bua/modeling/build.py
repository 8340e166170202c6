"""Builds the detector that a configuration describes."""

import torch

from bua.config import check_device
from bua.config_values import check_choices
from bua.errors import InputError
from bua.io.images import Resize
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import BLOCKS, ResNetC4, freeze_parameters
from bua.modeling.detector import Detector
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.modeling.efficientdet import NO_FEATURES, EfficientDet, build_efficientdet
from bua.modeling.grid_detector import AttributeStandardROIHeads, GridDetector, ResNetC5
from bua.modeling.roi_heads import AttributeRes5ROIHeads, ROIHeads
from bua.modeling.rpn import RPN
from bua.modeling.vinvl import META_ARCHITECTURE as VINVL
from bua.modeling.vinvl import build_vinvl

# The values of MODEL.META_ARCHITECTURE that Detectron2 does not have.
TORCH_ALONE = (EFFICIENTDET, VINVL)
GRID_HEADS = ("AttributeStandardROIHeads", "StandardROIHeads")

# The values that each key may have.
_SUPPORTED = {
    "MODEL.META_ARCHITECTURE": ("AttributeRCNN", "GeneralizedRCNN"),
    "MODEL.BACKBONE.NAME": ("build_bua_resnet_backbone", "build_resnet_backbone"),
    "MODEL.RESNETS.DEPTH": tuple(BLOCKS),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "GN"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.RESNETS.DEFORM_MODULATED": (False,),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": (1,),
    "MODEL.ANCHOR_GENERATOR.NAME": ("BUAAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("BUAProposalGenerator", "RPN"),
    "MODEL.BUA.RESNET_VERSION": (1, 2),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": ("AttributeRes5ROIHeads", "Res5ROIHeads", *GRID_HEADS),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlign", "ROIAlignV2"),
    "INPUT.FORMAT": ("BGR",),
}
# Those that differ for the detectors of grid-feats-vqa.
_SUPPORTED_FOR_GRID = {
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone",),
    "MODEL.RESNETS.OUT_FEATURES": (["res5"],),
    "MODEL.RPN.IN_FEATURES": (["res5"],),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res5"],),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (1, 2, 3, 4),
    "MODEL.BUA.RESNET_VERSION": (1,),
}


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
    """Raises InputError if ``cfg`` describes a detector that this engine does not have."""
    if cfg.MODEL.META_ARCHITECTURE in TORCH_ALONE:
        return
    of_grid = cfg.MODEL.ROI_HEADS.NAME in GRID_HEADS
    supported = _SUPPORTED | _SUPPORTED_FOR_GRID if of_grid else _SUPPORTED
    check_choices(cfg, "config", supported, "the torch engine supports")
    _check_deformable(cfg, of_grid)


def _check_deformable(cfg, of_grid: bool) -> None:
    deformable = list(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    possible = 0 if cfg.MODEL.BUA.RESNET_VERSION == 2 else 4 if of_grid else 3
    if len(deformable) != 4 or any(deformable[possible:]):
        raise InputError(
            f"config: MODEL.RESNETS.DEFORM_ON_PER_STAGE is {deformable}; give True or False for each of res2, res3, "
            "res4 and res5, and False for res5 on regions (C4) and for a ResNet of version 2"
        )
