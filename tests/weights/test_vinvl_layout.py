"""The weights of VinVL's detector under their released names."""

import json

import pytest
import released_layouts as released
import torch
from torch import nn

from bua.config import load_cfg
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import ResNetC4
from bua.modeling.roi_heads import AttributeRes5ROIHeads
from bua.modeling.rpn import RPN
from bua.weights.layouts import ANCHORS, LayoutError, to_bua
from bua.weights.zoo import ZOO


@pytest.fixture(scope="module")
def full():
    """Names and shapes of the parameters of VinVL's network at its real size."""
    cfg = load_cfg("configs/vinvl_x152c4.yaml")
    with torch.device("meta"):
        backbone = ResNetC4(cfg)
        rpn = RPN(cfg, backbone.out_channels, AnchorGenerator(cfg, [backbone.stride]))
        parts = {"backbone": backbone, "proposal_generator": rpn, "roi_heads": AttributeRes5ROIHeads(cfg)}
        return {name: tuple(values.shape) for name, values in nn.ModuleDict(parts).state_dict().items()}


def test_names_and_shapes_are_those_of_the_released_file(full, shared_data):
    shapes = json.loads((shared_data / "golden" / "vinvl" / "released_shapes.json").read_text())
    with torch.device("meta"):
        weights = {f"module.{name}": torch.empty(shape) for name, shape in shapes.items()}
        converted = {name: tuple(values.shape) for name, values in to_bua(weights).items()}
        written = released.vinvl({name: torch.empty(shape) for name, shape in full.items()})
    assert converted.pop(ANCHORS) == (15, 4)
    assert converted == full
    assert len(shapes) == 841
    assert written.keys() == weights.keys()


def test_files_may_lack_the_prefix_and_the_second_extractor(full):
    torch.manual_seed(0)
    small = {name: torch.rand([min(size, 8) for size in shape]) for name, shape in full.items()}
    weights = {name.removeprefix("module."): values for name, values in released.vinvl(small).items()}
    without = {name: values for name, values in weights.items() if not name.startswith("attribute.feature_extractor")}
    name = "roi_heads.res5.2.conv3.norm.running_var"
    torch.testing.assert_close(to_bua(without)[name], small[name])
    assert to_bua(weights).keys() == to_bua(without).keys()
    name = "attribute.feature_extractor.head.layer4.0.conv1.weight"
    weights[name] = weights[name] + 1
    with pytest.raises(LayoutError, match="a feature extractor of its own"):
        to_bua(weights)


def test_the_zoo_names_its_configuration_and_its_class_names():
    release = ZOO["vinvl-x152c4"]
    assert load_cfg(release.config).MODEL.WEIGHTS == "vinvl-x152c4"
    assert release.labels.endswith("VG-SGG-dicts-vgoi6-clipped.json")
