"""What a checkpoint says about its detector."""

import pytest

from bua.config import load_cfg
from bua.detection.description import describe_detector


@pytest.mark.parametrize("agnostic", [False, True])
def test_all_keys_are_kept_of_a_detector_that_only_detectron2_has(agnostic):
    cfg = load_cfg("vg_r101.yaml")
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic  # a key of Detectron2
    assert ("CLS_AGNOSTIC_BBOX_REG" in describe_detector(cfg, ["a"], ["b"]).config) == agnostic
