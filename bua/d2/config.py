"""Detectron2's configuration with bua's own keys, and a check that its parts support them."""

from collections.abc import Sequence
from pathlib import Path

import detectron2.config
from fvcore.common.config import CfgNode

import bua.config
from bua.config import add_bua_config
from bua.errors import InputError


def load_cfg(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a configuration as ``bua.config.load_cfg`` does, but with all of Detectron2's keys."""
    cfg = detectron2.config.get_cfg()
    add_bua_config(cfg)
    # A few defaults of bua differ from Detectron2's. They are set here, so that a file means the same to both engines.
    own = bua.config.get_cfg()
    cfg.MODEL.DEVICE = own.MODEL.DEVICE
    cfg.MODEL.ROI_HEADS.NAME = own.MODEL.ROI_HEADS.NAME
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = own.MODEL.ROI_HEADS.NUM_CLASSES
    return bua.config.load_cfg(config_file, overrides, defaults=cfg)


def check_parts(cfg: CfgNode) -> None:
    """Checks that the parts that ``cfg`` names support its settings under MODEL.BUA.

    Raises:
        InputError: A part of Detectron2's own would ignore a setting under MODEL.BUA.
    """
    model = cfg.MODEL
    needed = {}
    if model.BUA.BOX_CONVENTION == "caffe":
        needed["MODEL.BUA.BOX_CONVENTION"] = {
            "MODEL.META_ARCHITECTURE": (model.META_ARCHITECTURE, "AttributeRCNN"),
            "MODEL.ANCHOR_GENERATOR.NAME": (model.ANCHOR_GENERATOR.NAME, "BUAAnchorGenerator"),
            "MODEL.PROPOSAL_GENERATOR.NAME": (model.PROPOSAL_GENERATOR.NAME, "BUAProposalGenerator"),
            "MODEL.ROI_HEADS.NAME": (model.ROI_HEADS.NAME, "AttributeRes5ROIHeads"),
        }
    backbone = {"MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, "build_bua_resnet_backbone")}
    if model.BUA.STEM_POOL == "caffe":
        needed["MODEL.BUA.STEM_POOL"] = backbone
    if model.BUA.RESNET_VERSION == 2:
        needed["MODEL.BUA.RESNET_VERSION"] = backbone
    for key, parts in needed.items():
        for part, (found, wanted) in parts.items():
            if found != wanted:
                raise InputError(f"config: {key} is {_value(cfg, key)!r}, which needs {part} {wanted}, not {found}")


def _value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
