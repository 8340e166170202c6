"""Settings that bua's own parts would ignore, or cannot build, are refused in one line."""

from pathlib import Path

import pytest

from bua.config import load_cfg
from bua.errors import InputError
from bua.modeling import build_detector
from bua.modeling.build import check_supported
from bua.modeling.supported import C4_VALUES, check_network

CONFIGS = sorted([*Path("configs").glob("*.yaml"), *Path("configs", "grid_feats").glob("*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_engine_has_all_detectors_of_configs_but_the_one_with_a_pyramid(path):
    if path.stem == "vg_r101_fpn":
        with pytest.raises(InputError, match=r"MODEL\.BACKBONE\.NAME"):
            check_supported(load_cfg(path))
    else:
        check_supported(load_cfg(path))


@pytest.mark.parametrize(
    ("config", "key", "value", "message"),
    [
        (
            "vg_r101",
            "MODEL.RPN.CONV_DIMS",
            "[128, 128]",
            "is [128, 128]; the torch engine supports a list of 1, not of 2",
        ),
        ("vg_r101", "MODEL.RPN.HEAD_NAME", "Foo", "is 'Foo'; the torch engine supports 'StandardRPNHead'"),
        ("vg_r101", "MODEL.RPN.IOU_LABELS", "[0, 1, 1]", "is [0, 1, 1]; the torch engine supports [0, -1, 1]"),
        ("vg_r101", "MODEL.RPN.IOU_THRESHOLDS", "[0.5]", "is [0.5]; the torch engine supports a list of 2, not of 1"),
        ("vg_r101", "MODEL.RPN.IN_FEATURES", "['res3']", "IN_FEATURES is ['res3']; the torch engine supports ['res4']"),
        ("vg_r101", "MODEL.RESNETS.OUT_FEATURES", "['res5']", "is ['res5']; the torch engine supports ['res4']"),
        (
            "vg_r101",
            "MODEL.ANCHOR_GENERATOR.SIZES",
            "[[32], [64]]",
            "is [[32], [64]]; the torch engine supports a list",
        ),
        ("vg_r101", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1], [2]]", "supports a list of 1, not of 2"),
        ("vg_r101", "MODEL.ROI_HEADS.IN_FEATURES", "['res3']", "is ['res3']; the torch engine supports ['res4']"),
        ("vg_r101", "MODEL.ROI_HEADS.IOU_LABELS", "[1, 0]", "is [1, 0]; the torch engine supports [0, 1]"),
        ("vg_r101", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3, 0.5]", "a list of 1, not of 2"),
        (
            "vg_r101",
            "MODEL.ROI_HEADS.NAME",
            "Res5ROIHeads",
            "which has no attributes; set MODEL.BUA.ATTRIBUTES.ENABLED",
        ),
        ("vg_r101", "MODEL.MASK_ON", "True", "is True; the torch engine supports False"),
        ("grid_feats/r50", "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "or take AttributeStandardROIHeads"),
        ("vinvl_x152c4", "MODEL.MASK_ON", "True", "is True; VinVL's detector has False"),
        ("vinvl_x152c4", "MODEL.RESNETS.DEPTH", "42", "is 42; VinVL's detector has 50, 101, 152"),
        (
            "vinvl_x152c4",
            "MODEL.RPN.BBOX_REG_WEIGHTS",
            "(2.0, 1.0, 1.0, 1.0)",
            "VinVL's detector has (1.0, 1.0, 1.0, 1.0)",
        ),
        ("vinvl_x152c4", "MODEL.BUA.RESIZE", "caffe", "is 'caffe'; VinVL's detector has 'detectron2'"),
        ("vinvl_x152c4", "MODEL.RPN.CONV_DIMS", "[128, 128]", "VinVL's detector has a list of 1, not of 2"),
    ],
)
def test_what_would_be_ignored_is_refused(config, key, value, message):
    with pytest.raises(InputError) as error:
        build_detector(load_cfg(f"{config}.yaml", [key, value]))
    assert str(error.value).startswith(f"config: {key} is ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RES2_OUT_CHANNELS", 40, "divide the channels of MODEL.RESNETS.RES2_OUT_CHANNELS 40 into 32 groups"),
        ("RES2_OUT_CHANNELS", 24, "RES2_OUT_CHANNELS 24"),  # 48 in res3
        ("STEM_OUT_CHANNELS", 33, "STEM_OUT_CHANNELS 33"),
        ("WIDTH_PER_GROUP", 36, "MODEL.RESNETS.NUM_GROUPS 1 and MODEL.RESNETS.WIDTH_PER_GROUP 36"),
        ("RES2_OUT_CHANNELS", 16, None),
        ("STEM_OUT_CHANNELS", 24, None),
    ],
)
def test_channels_that_have_no_groups_are_refused(key, value, message):
    cfg = load_cfg("vg_r50.yaml", ["MODEL.RESNETS.NORM", "GN", f"MODEL.RESNETS.{key}", str(value)])
    if message is None:
        check_supported(cfg)
    else:
        with pytest.raises(InputError) as error:
            build_detector(cfg)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        ("ROI_BOX_HEAD", "CLS_AGNOSTIC_BBOX_REG", True),
        ("ROI_BOX_HEAD", "USE_SIGMOID_CE", True),
        ("ROI_BOX_HEAD", "NUM_CONV", 2),
    ],
)
def test_keys_of_detectron2_alone_are_refused(node, key, value):
    cfg = load_cfg("grid_feats/r50.yaml")
    cfg.MODEL[node][key] = value
    with pytest.raises(InputError, match=key):
        check_supported(cfg)
    cfg.MODEL[node][key] = type(value)(0)
    check_supported(cfg)


def test_a_configuration_that_lacks_a_key_is_not_refused_for_it():
    cfg = load_cfg("vg_r101.yaml")
    assert "KEYPOINT_ON" not in cfg.MODEL
    check_network(cfg, C4_VALUES, "the torch engine supports")
