"""Anchors in either convention for Detectron2."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor

from bua.modeling.anchors import AnchorGenerator


@ANCHOR_GENERATOR_REGISTRY.register()
class BUAAnchorGenerator(AnchorGenerator):
    """Unlike Detectron2's ``DefaultAnchorGenerator`` it also has the original's anchors (MODEL.BUA.BOX_CONVENTION)."""

    box_dim = 4

    def __init__(self, cfg, input_shape: list[ShapeSpec]):
        super().__init__(cfg, [shape.stride for shape in input_shape])

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        return [Boxes(anchors) for anchors in super().forward(features)]
