"""Which values of a configuration the parts of the torch engine have.

Detectron2 has keys and values that bua's own parts would ignore, so that another model would run than the configuration
describes. All that differ from what the parts do are refused.
"""

from collections.abc import Mapping, Sequence

from bua.config_values import check_choices, value_of
from bua.errors import InputError
from bua.modeling.backbone import BLOCKS

Choices = Mapping[str, Sequence[object]]

# The values of the keys that the region proposal network reads, and the lengths of its lists.
RPN_VALUES: Choices = {
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
}
RPN_LENGTHS = {
    **{"MODEL.RPN.IN_FEATURES": 1, "MODEL.RPN.CONV_DIMS": 1, "MODEL.RPN.IOU_THRESHOLDS": 2},
    **{"MODEL.ANCHOR_GENERATOR.SIZES": 1, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": 1},
}
# Those of the heads that describe regions. The last five keys are Detectron2's alone.
HEADS_VALUES: Choices = {
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1],),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlign", "ROIAlignV2"),
    "MODEL.MASK_ON": (False,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": (False,),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False,),
}
HEADS_LENGTHS = {"MODEL.ROI_HEADS.IN_FEATURES": 1, "MODEL.ROI_HEADS.IOU_THRESHOLDS": 1}

GRID_HEADS = ("AttributeStandardROIHeads", "StandardROIHeads")
# The values of each key of a C4 detector.
C4_VALUES: Choices = {
    "MODEL.META_ARCHITECTURE": ("AttributeRCNN", "GeneralizedRCNN"),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.BACKBONE.NAME": ("build_bua_resnet_backbone", "build_resnet_backbone"),
    "MODEL.RESNETS.DEPTH": tuple(BLOCKS),
    "MODEL.RESNETS.OUT_FEATURES": (["res4"],),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "GN"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.RESNETS.DEFORM_MODULATED": (False,),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": (1,),
    "MODEL.BUA.RESNET_VERSION": (1, 2),
    "MODEL.ANCHOR_GENERATOR.NAME": ("BUAAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("BUAProposalGenerator", "RPN"),
    "MODEL.RPN.IN_FEATURES": (["res4"],),
    "MODEL.ROI_HEADS.NAME": ("AttributeRes5ROIHeads", "Res5ROIHeads", *GRID_HEADS),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res4"],),
    "INPUT.FORMAT": ("BGR",),
    **RPN_VALUES,
    **HEADS_VALUES,
}
# Those of a detector of grid-feats-vqa.
GRID_VALUES: Choices = {
    **C4_VALUES,
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone",),
    "MODEL.RESNETS.OUT_FEATURES": (["res5"],),
    "MODEL.RPN.IN_FEATURES": (["res5"],),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res5"],),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (1, 2, 3, 4),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.BUA.RESNET_VERSION": (1,),
}


def check_network(cfg, values: Choices, wanted: str) -> None:
    """Checks that bua's own parts build the network that a configuration describes.

    Args:
        cfg: A configuration of either engine.
        values: ``C4_VALUES`` or ``GRID_VALUES``, or what a kind of detector has in their place.
        wanted: Who supports these values, for the message.

    Raises:
        InputError: They would build another one, or cannot build it.
    """
    check_values_and_lengths(cfg, values, RPN_LENGTHS | HEADS_LENGTHS, wanted)
    _check_attributes(cfg)
    _check_deformable(cfg)
    _check_group_norm(cfg)


def check_values_and_lengths(cfg, values: Choices, lengths: Mapping[str, int], wanted: str) -> None:
    """Checks values that must be one of a few, and lists that must have a certain length. Keys that the configuration
    does not have are left out.

    Raises:
        InputError: A key has another value, or its list another length.
    """
    check_choices(cfg, "config", {key: values[key] for key in values if _has(cfg, key)}, wanted)
    for key, length in lengths.items():
        value = value_of(cfg, key)
        if len(value) != length:
            raise InputError(f"config: {key} is {value!r}; {wanted} a list of {length}, not of {len(value)}")


def _has(cfg, key: str) -> bool:
    for name in key.split("."):
        if name not in cfg:
            return False
        cfg = cfg[name]
    return True


def _check_attributes(cfg) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.BUA.ATTRIBUTES.ENABLED and not name.startswith("Attribute"):
        raise InputError(
            f"config: MODEL.ROI_HEADS.NAME is {name!r}, which has no attributes; set MODEL.BUA.ATTRIBUTES.ENABLED "
            f"False, or take Attribute{name}"
        )


def _check_deformable(cfg) -> None:
    deformable = list(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    of_grid = cfg.MODEL.ROI_HEADS.NAME in GRID_HEADS
    possible = 0 if cfg.MODEL.BUA.RESNET_VERSION == 2 else 4 if of_grid else 3
    if len(deformable) != 4 or any(deformable[possible:]):
        raise InputError(
            f"config: MODEL.RESNETS.DEFORM_ON_PER_STAGE is {deformable}; give True or False for each of res2, res3, "
            "res4 and res5, and False for res5 on regions (C4) and for a ResNet of version 2"
        )


def _check_group_norm(cfg) -> None:
    """Checks that the channels of each layer of the ResNet can be divided into groups, of which there are 32, or one
    for each channel where there are fewer."""
    resnets = cfg.MODEL.RESNETS
    if resnets.NORM != "GN":
        return
    for keys, channels, stages in (
        (("STEM_OUT_CHANNELS",), resnets.STEM_OUT_CHANNELS, 1),
        (("NUM_GROUPS", "WIDTH_PER_GROUP"), resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP, 4),
        (("RES2_OUT_CHANNELS",), resnets.RES2_OUT_CHANNELS, 4),
    ):
        # The channels double from stage to stage.
        if any(width > 32 and width % 32 for width in (channels * 2**stage for stage in range(stages))):
            values = " and ".join(f"MODEL.RESNETS.{key} {resnets[key]}" for key in keys)
            raise InputError(
                f"config: MODEL.RESNETS.NORM is 'GN', which cannot divide the channels of {values} into 32 groups; "
                "give a multiple of 32, or another NORM"
            )
